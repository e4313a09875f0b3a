"""DALI carries out a plan. Nothing else imports `nvidia.dali`, and this does so when a stage is built."""
