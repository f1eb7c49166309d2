"""The page of a run: one HTML file that opens without a server and requests nothing.

An experiment's folder, or the events of a run that goes on, enter; ``report.html`` leaves. `document` gathers what the
page says in plain values, `page` writes them into one file together with ``assets/``, which draw them in the browser.
"""
