//! LoRAs: merged weights against those of diffusers and PEFT, what is refused, and the proof of them.

mod merged;
mod proof;
mod refused;
mod support;
