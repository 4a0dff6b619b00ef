"""Turns annotations into label maps, and label maps into annotations.

drawing.py       an annotation → the label map of its slide, with what was painted and left out
writing.py       the label map of a slide → a file in any format
sandboxed.py     parses outlines in the sandbox
formats.py       which format a file has, and its reader and writer
sidecars.py      files that have the name of an annotation, but hold none
qupath.py, asap.py, regions.py (ImageScope, HALO), ndpa.py    the formats of outlines
label_images.py  masks
outlines.py, class_names.py, placement.py, rasterize.py       the steps between
"""
