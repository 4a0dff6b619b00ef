"""Every request and record that passes between services.

Each service has one module. A request asks for a job; a record describes a result.
Keys name objects in the store. Sizes are in pixels, at the resolution `mpp` (micrometres
per pixel). Label 0 is background or unlabelled, unless classes are exhaustive (`Classes`).
"""
