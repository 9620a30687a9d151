"""The numbers, labels, units and colours of the figures, for `report.plots` and `report.page` alike."""
