"""`penstock bench`: named workloads, the machine's limits, where the time goes, and other engines beside it."""
