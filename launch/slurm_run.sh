# shellcheck shell=bash
# Sourced by slurm.sbatch and slurm_sweep.sbatch. What: runs Python in all tasks and puts the job back into the queue
# when it was told to stop early, or when it failed for another reason than its own config (exit code 2).
# Needs:   SLURM_* of a batch job. MAX_RESTARTS (default 3) bounds the restarts after failures.

run_or_requeue() {
  local stopped=0 code=0 step
  srun --kill-on-bad-exit=1 .venv/bin/python "$@" &
  step=$!
  # --signal=B: wakes this shell only, a preemption all: then the tasks get it twice, which is once for them.
  trap 'stopped=1; kill -TERM "$step" 2>/dev/null' TERM
  while true; do
    code=0
    wait "$step" || code=$?
    kill -0 "$step" 2>/dev/null || break
  done
  if [ "$code" -eq 2 ]; then
    return 2
  fi
  if [ "$stopped" -eq 1 ] || { [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-3}" ]; }; then
    echo "stopped (exit code $code); job $SLURM_JOB_ID goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID" || true  # a preempted job is in the queue already
  fi
  return "$code"
}
