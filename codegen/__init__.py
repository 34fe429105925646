"""Graph to schedule to plan to text. Start reading at `schedule` (decisions), then `unit` (text)."""
