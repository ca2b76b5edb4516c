"""Scripts that run another engine in a process of its own; they import nothing of SelfDraft."""
