# shellcheck shell=bash
# Sourced by slurm.sbatch and slurm_sweep.sbatch.
# What:    runs Python in all tasks, and puts the job back into the queue when it was told to stop early, or when it
#          failed for another reason than the user's own mistake (exit code 2).
# Needs:   SLURM_* of a batch job. MAX_RESTARTS (default 3): after so many restarts a failure is final.
# Command: run_or_requeue -m MODULE [options]

run_or_requeue() {
  local stopped=0 code=0 step job=$SLURM_JOB_ID
  # The number of one of an array's tasks is that of the whole array, too.
  [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  # Slurm wakes this shell alone (--signal=B:), so it knows why the tasks end with 0. It passes the signal on to the
  # steps through Slurm: srun itself takes SIGTERM as the order to break them off. In the background, because scancel
  # tries again for a minute where the job is being requeued; then Slurm has told the tasks itself.
  trap 'stopped=1; timeout 10 scancel --quiet --signal=TERM "$job" &' TERM
  srun --kill-on-bad-exit=1 .venv/bin/python "$@" &
  step=$!
  while true; do  # a signal ends `wait` before srun does
    code=0
    wait "$step" || code=$?
    kill -0 "$step" 2>/dev/null || break
  done
  if [ "$code" -eq 2 ]; then
    return 2
  fi
  if [ "$stopped" -eq 1 ] || { [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-3}" ]; }; then
    # Not one that was cancelled, or that Slurm itself requeues: both are COMPLETING by now.
    if [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
      echo "ended early (exit code $code); job $job goes back into the queue"
      scontrol requeue "$job" || true
    fi
  fi
  return "$code"
}
