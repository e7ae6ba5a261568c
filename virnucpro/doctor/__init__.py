"""What of this installation and this machine is fit for a run, and what to do about the rest."""
