"""The figures of the report, one file per figure; `baklava.report.figure_list` lists them for the workflow."""
