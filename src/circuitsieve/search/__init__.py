"""The search: masks learned, or nodes scored, until the smallest circuit within a budget is found."""
