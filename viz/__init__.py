"""Pictures, figures and the dashboard."""
