"""Where is speech? Silero's voice activity detector on a synthesised voice between two silences.

Assumes the package `silero-vad` for the model file (its code is not used). The voice is made here, with NumPy: pulses
of a gliding pitch through the resonances of a few vowels, so nothing needs to be recorded or downloaded.

    python -m examples.voice --backend onnxruntime
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from examples import backends

RATE = 16000
FRAME = 512  # new samples the network sees at a step, 32 ms
CONTEXT = 64  # samples of the step before that it sees again
STATE = 128

# The first four resonances of vowels, in Hz, of an adult speaker.
VOWELS = {
    "a": (730, 1090, 2440, 3400),
    "e": (530, 1840, 2480, 3500),
    "i": (270, 2290, 3010, 3700),
    "o": (570, 840, 2410, 3300),
    "u": (300, 870, 2240, 3200),
}
BANDWIDTHS = (80, 90, 120, 150)


def model_path() -> Path:
    package = find_spec("silero_vad")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "voice: the package silero-vad, which carries the model, is not installed; "
            "run `make venv`, or `pip install --no-deps -r tests/models.txt`"
        )
    return Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx"


def resonance(frequencies: np.ndarray, center: float, bandwidth: float) -> np.ndarray:
    """The complex response, at `frequencies`, of a resonance; one at zero frequency."""
    pole = -np.pi * bandwidth + 2j * np.pi * center
    s = 2j * np.pi * frequencies
    return abs(pole) ** 2 / ((s - pole) * (s - pole.conjugate()))


def syllable(vowel: str, seconds: float, pitch: tuple[float, float], generator: np.random.Generator) -> np.ndarray:
    """One vowel with a soft beginning and end; the pitch glides, and trembles a little as voices do."""
    count = int(seconds * RATE)
    time = np.arange(count) / RATE
    glide = np.linspace(*pitch, count) * (1 + 0.01 * np.sin(2 * np.pi * 5.5 * time))
    phase = np.cumsum(glide / RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0)  # one at each closing of the vocal folds
    source = pulses + 0.005 * generator.standard_normal(count)  # and some breath
    frequencies = np.fft.rfftfreq(2 * count, 1 / RATE)
    response = 1 / (1 + 1j * frequencies / 200)  # the folds' own slope towards high frequencies
    for center, bandwidth in zip(VOWELS[vowel], BANDWIDTHS, strict=True):
        response = response * resonance(frequencies, center, bandwidth)
    response = response * (1j * frequencies / 1000)  # radiation from the lips
    wave = np.fft.irfft(np.fft.rfft(source, 2 * count) * response)[:count]
    envelope = np.minimum(1, np.minimum(time, time[::-1]) / 0.03)
    return wave / np.abs(wave).max() * envelope


def hiss(seconds: float, generator: np.random.Generator) -> np.ndarray:
    """A consonant between two vowels: noise without its low frequencies."""
    noise = generator.standard_normal(int(seconds * RATE))
    return 0.08 * np.diff(noise, prepend=0.0) * np.hanning(len(noise))


def synthesize() -> tuple[np.ndarray, tuple[float, float]]:
    """(samples, (begin, end) of the voice in seconds): silence, some syllables, silence."""
    generator = np.random.default_rng(7)
    quiet = np.zeros(RATE)
    parts = []
    melody = (("a", 0.22, 120, 140), ("i", 0.18, 140, 130), ("o", 0.25, 130, 110), ("e", 0.2, 125, 135))
    for vowel, seconds, low, high in melody * 2:
        parts += [syllable(vowel, seconds, (low, high), generator), hiss(0.07, generator)]
    voice = 0.5 * np.concatenate(parts)
    audio = np.concatenate([quiet, voice, quiet])
    audio += 0.0005 * generator.standard_normal(len(audio))  # no room is silent
    return audio.astype(np.float32), (1.0, 1.0 + len(voice) / RATE)


def frames(audio: np.ndarray) -> np.ndarray:
    """(steps, context + frame): each step with the end of the one before; zeros before the first and after the last."""
    count = -(-len(audio) // FRAME)
    padded = np.zeros(CONTEXT + count * FRAME, np.float32)
    padded[CONTEXT : CONTEXT + len(audio)] = audio
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
    return np.ascontiguousarray(windows)


def speech_probabilities(audio: np.ndarray, backend: str) -> np.ndarray:
    """One probability for every 32 ms."""
    model = backends.load(model_path(), backend)
    state = np.zeros((1, 1, STATE), np.float32)
    probabilities, _, _ = model({"input": frames(audio), "h": state, "c": state})
    return probabilities


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    backends.add_argument(parser)
    backend = parser.parse_args().backend
    audio, (begin, end) = synthesize()
    probabilities = speech_probabilities(audio, backend)
    print(f"voice from {begin:.2f} s to {end:.2f} s of {len(audio) / RATE:.2f} s; a line is 96 ms")
    for step in range(0, len(probabilities), 3):
        probability = float(probabilities[step : step + 3].mean())
        print(f"{step * FRAME / RATE:6.2f} s  {probability:5.2f}  {'#' * round(40 * probability)}")
    times = (np.arange(len(probabilities)) + 0.5) * FRAME / RATE
    inside = (times > begin) & (times < end)
    print(f"mean probability: voice {probabilities[inside].mean():.2f}, silence {probabilities[~inside].mean():.2f}")


if __name__ == "__main__":
    main()
