"""Reader study: blinded people judge which images are real. See docs/reader-study.md.

Readers see only `series` and `images`; only the maker of the study sees `key.json`. A store has
these objects:

reader_studies/<study>/study.json                    StudyRecord; written last
reader_studies/<study>/key.json                      Key: kind and origin of every picture
reader_studies/<study>/images/<picture>.jpg          all have the same size in pixels and bytes
reader_studies/<study>/series/<reader>.json          Series: the pictures in a reader's order
reader_studies/<study>/answers/<reader>/<image>.json Answer
reader_studies/<study>/closed/<reader>               mark: no later answer is part of the submission
reader_studies/<study>/submitted/<reader>.json       Submitted
access/readings/<sha256>.json                        ReadingRecord, by the hash of a reader's token
"""
