"""From records to scores with intervals, and to the headline figures."""
