// metric
