"""The store: verbs over mechanisms over one disk seam. DESIGN.md here says how the protocols work."""
