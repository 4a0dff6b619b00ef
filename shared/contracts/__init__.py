"""Every request and record that crosses a service border.

One module per service; requests say what to make, records say what was made.
Keys name objects in the store. Sizes are in pixels, and `mpp` (micrometres per
pixel) stands beside them. Label 0 is background/unlabelled.
"""
