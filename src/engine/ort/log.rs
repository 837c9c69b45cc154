//! What ONNX Runtime logs.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use ort::logging::{LogLevel, LoggerFunction};

use crate::engine::Placement;

/// The latest messages of ONNX Runtime, kept instead of printed.
#[derive(Clone, Default)]
pub(super) struct Messages(Arc<Mutex<VecDeque<String>>>);

impl Messages {
    const KEPT: usize = 16;

    /// A logger that keeps warnings and errors.
    pub(super) fn logger(&self) -> LoggerFunction {
        let kept = self.clone();
        Arc::new(move |level, _, _, _, message| {
            if level >= LogLevel::Warning {
                kept.push(message);
            }
        })
    }

    /// A logger that keeps the lines about which provider runs how many nodes.
    pub(super) fn placement_logger(&self) -> LoggerFunction {
        let kept = self.clone();
        Arc::new(move |_, _, _, _, message| {
            if message.contains("placed on [") {
                kept.push(message);
            }
        })
    }

    fn push(&self, message: &str) {
        let mut messages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if messages.len() == Self::KEPT {
            messages.pop_front();
        }
        messages.push_back(message.trim().to_string());
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The messages, each on a line after the first.
    pub(super) fn joined(&self) -> String {
        let messages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        messages.iter().map(|m| format!("\n{m}")).collect()
    }

    pub(super) fn placement(&self) -> Vec<Placement> {
        let messages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        messages.iter().filter_map(|m| placement_line(m)).collect()
    }
}

/// Reads `Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 35`.
fn placement_line(line: &str) -> Option<Placement> {
    let (provider, rest) = line.split_once("placed on [")?.1.split_once(']')?;
    let nodes = rest.split_once("Number of nodes:")?.1.trim().parse().ok()?;
    Some(Placement { provider: provider.to_string(), nodes })
}

/// A message of ONNX Runtime without the place in its sources that some begin with.
pub(super) fn plain(message: &str) -> &str {
    // ".../provider_bridge_ort.cc:2043 ... [ONNXRuntimeError] : 1 : FAIL : Failed to load library ..."
    let status = message.split_once("[ONNXRuntimeError] : ").map(|(_, status)| status);
    status.and_then(|s| s.splitn(3, " : ").nth(2)).unwrap_or(message).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_lose_only_their_source_place() {
        let message = "/src/bridge.cc:2043 Get() [ONNXRuntimeError] : 1 : FAIL : Failed : libcublas.so.13\n";
        assert_eq!(plain(message), "Failed : libcublas.so.13");
        assert_eq!(plain("not enabled in this build"), "not enabled in this build");
        let line = " Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 35";
        let placement = Placement { provider: "CUDAExecutionProvider".to_string(), nodes: 35 };
        assert_eq!(placement_line(line), Some(placement));
    }
}
