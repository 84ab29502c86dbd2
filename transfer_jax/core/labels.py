"""What all rooms agree on about labels."""

VOID = 255  # the class of pixels that belong to none
