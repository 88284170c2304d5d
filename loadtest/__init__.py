"""A load test that compares the variants of a model over HTTP; it imports nothing of the other packages.

`python -m loadtest` (`nash loadtest`) runs Locust on `locustfile.py` and reports on what it recorded:

    workload.py, schedule.py, loaded_models.py    what is sent, when, to which variants
    rows.py                                       one raw row a request, from Locust to the report
    generate_client.py, scheduling.py,
    locustfile.py                                 inside Locust; these import Locust and the modules above alone
    locust_process.py, progress.py                Locust as a child process, watched
    output_folder.py                              the folder of one run, and whole files in it
    figures.py, speedup.py, verdict.py            from rows to figures
    summary.py, plots.py, report.py               what is left in the output folder
"""
