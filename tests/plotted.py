"""Figures of a report: that plotly takes them and that they are safe to put into a page."""

import json

import plotly.graph_objects as go


def valid(figures):
    """The figures by title, once each is checked."""
    for figure in figures:
        assert go.Figure({"data": figure.data, "layout": figure.layout}).data  # raises on what plotly does not know
        assert "<script" not in json.dumps([figure.data, figure.layout])
        assert len(figure.alt) > 20
    return {figure.title: figure for figure in figures}
