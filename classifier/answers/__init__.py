"""A checkpoint's answers: computed, measured, explained, printed, drawn, exported, shown on a page."""
