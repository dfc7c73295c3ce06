"""Several banks and several departments: one scorecard, one model of trees."""
