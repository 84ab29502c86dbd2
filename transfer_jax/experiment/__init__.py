"""Floor 4: experiments: stages in order over one model, their workdir, and reports."""
