"""A load test that compares the variants of a model over HTTP. It imports nothing from the other packages.

`python -m loadtest` (`nash loadtest`) runs Locust on `locustfile.py` and reports what it recorded:

    workload.py, schedule.py, loaded_models.py    what is sent, when, to which variants
    rows.py                                       one raw row per request, from Locust to the report
    generate_client.py, scheduling.py,
    locustfile.py                                 inside Locust; these import only Locust and the modules above
    locust_process.py, progress.py                Locust as a child process, and its progress
    output_folder.py                              the folder of one run, and writing whole files to it
    figures.py, speedup.py, verdict.py            from rows to figures
    summary.py, plots.py, report.py               the results in the output folder
"""
