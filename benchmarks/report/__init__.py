"""The report and the tables that are made of results."""
