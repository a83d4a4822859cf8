"""Fine-tune VibeVoice text-to-speech models: what you train is what you hear."""

__version__ = "0.1.0"
