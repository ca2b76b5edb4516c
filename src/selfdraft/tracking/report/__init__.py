"""The report: one HTML page about finished runs, which needs no network.

`runs` reads folders, `rows`, `charts` and `decode` turn results into what is shown, and `page` puts that into the
templates in page/. Only `runs` and `page` touch files.
"""
