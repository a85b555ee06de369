"""Start the commands of jobs: on this machine, or by the scheduler of a cluster."""
