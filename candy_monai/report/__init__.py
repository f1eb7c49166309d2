"""The report page of a run: one HTML file that opens without a server and makes no requests.

The input is an experiment folder, or the events of a running training; the output is ``report.html``. `document`
collects the content of the page as plain values, `page` writes them into one file together with ``assets/``, which draw
them in the browser.
"""
