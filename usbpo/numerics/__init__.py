"""What model and agent share: the optimizer, devices, threads, seeds."""

THREADS = "USBPO_THREADS"
"""Environment variable: how many threads a stage shares its work out to (`usbpo.numerics.threads`)."""
