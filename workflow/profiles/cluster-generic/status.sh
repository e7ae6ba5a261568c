#!/bin/sh
# Says what became of a PBS job: running, success or failed. A job that PBS no longer knows counts as
# failed: Snakemake then submits it again, and finished shards are found finished.
state=$(qstat -x -f "$1" 2>/dev/null)
case "$state" in
  *"job_state = F"*"Exit_status = 0"* | *"Exit_status = 0"*"job_state = F"*) echo success ;;
  *"job_state = F"* | "") echo failed ;;
  *) echo running ;;
esac
