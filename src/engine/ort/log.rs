//! The log of ONNX Runtime.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use ort::logging::{LogLevel, LoggerFunction};

use crate::{engine::Placement, lock::lock};

/// The latest messages of ONNX Runtime, kept instead of printed.
#[derive(Clone, Default)]
pub(super) struct Messages(Arc<Mutex<VecDeque<String>>>);

impl Messages {
    const KEPT: usize = 16;

    /// Returns a logger that keeps warnings and errors.
    pub(super) fn logger(&self) -> LoggerFunction {
        let kept = self.clone();
        Arc::new(move |level, _, _, _, message| {
            if level >= LogLevel::Warning {
                kept.push(message);
            }
        })
    }

    /// Returns a logger that keeps the lines about which provider runs how many nodes, and has no kernels for which.
    pub(super) fn placement_logger(&self) -> LoggerFunction {
        let kept = self.clone();
        Arc::new(move |_, _, _, _, message| {
            if message.contains("placed on [") || message.contains(NO_KERNEL) {
                kept.push(message);
            }
        })
    }

    fn push(&self, message: &str) {
        let mut messages = lock(&self.0);
        if messages.len() == Self::KEPT {
            messages.pop_front();
        }
        messages.push_back(message.trim().to_string());
    }

    pub(super) fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Returns the messages, each on a line after the first.
    pub(super) fn joined(&self) -> String {
        let messages = lock(&self.0);
        messages.iter().map(|m| format!("\n{m}")).collect()
    }

    /// Returns the nodes that a provider has no kernels for, each once: "Max `n3`".
    pub(super) fn without_kernel(&self) -> Vec<String> {
        let messages = lock(&self.0);
        let node = |message: &String| {
            let (operator, name) = message.split_once(NO_KERNEL)?.1.split_once(" node name: ")?;
            Some(format!("{operator} `{name}`"))
        };
        messages.iter().filter_map(node).collect::<BTreeSet<_>>().into_iter().collect()
    }

    pub(super) fn placement(&self) -> Vec<Placement> {
        let messages = lock(&self.0);
        messages.iter().filter_map(|m| placement_line(m)).collect()
    }
}

/// The beginning of a message about a node that a provider leaves to others, after the provider's name.
const NO_KERNEL: &str = "kernel not found in registries for Op type: ";

/// Reads `Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 35`.
fn placement_line(line: &str) -> Option<Placement> {
    let (provider, rest) = line.split_once("placed on [")?.1.split_once(']')?;
    let nodes = rest.split_once("Number of nodes:")?.1.trim().parse().ok()?;
    Some(Placement { provider: provider.to_string(), nodes })
}

/// Returns a message of ONNX Runtime without the places in its sources and the C++ signatures that are in it.
pub(super) fn plain(message: &str) -> String {
    // ".../provider_bridge_ort.cc:2043 ... [ONNXRuntimeError] : 1 : FAIL : Failed to load library ..."
    let status = message.split_once("[ONNXRuntimeError] : ").map(|(_, status)| status);
    let mut rest = status.and_then(|s| s.splitn(3, " : ").nth(2)).unwrap_or(message).trim();
    let mut plain = String::new();
    while let Some((before, after)) = source_place(rest) {
        plain.push_str(before);
        rest = after_signature(after);
    }
    plain.push_str(rest);
    plain.trim().to_string()
}

/// Splits a message at `/path/of/a/source.cc:154 `.
fn source_place(message: &str) -> Option<(&str, &str)> {
    let (end, extension) =
        [".cc:", ".h:", ".cpp:", ".cu:"].iter().filter_map(|e| Some((message.find(e)?, e))).min()?;
    let start = message.get(..end)?.rfind(char::is_whitespace).map_or(0, |at| at + 1);
    let line = message.get(end + extension.len()..)?;
    let after = line.trim_start_matches(|c: char| c.is_ascii_digit());
    (after.len() < line.len()).then_some((message.get(..start)?, after.trim_start()))
}

/// Returns what comes after the signature of a C++ function, if the text begins with one.
fn after_signature(text: &str) -> &str {
    let Some(open) = text.find('(').filter(|open| text.get(..*open).is_some_and(is_function)) else {
        return text;
    };
    let Some(mut rest) = text.get(open..).and_then(|arguments| after_brackets(arguments, '(', ')')) else {
        return text;
    };
    loop {
        rest = rest.trim_start();
        let qualifier = ["const", "noexcept", "override"].iter().find_map(|word| rest.strip_prefix(word));
        match (qualifier, rest.starts_with("[with ").then(|| after_brackets(rest, '[', ']')).flatten()) {
            (Some(after), _) | (None, Some(after)) => rest = after,
            (None, None) => return rest,
        }
    }
}

/// Returns whether a text is what stands before the arguments in a signature: types and a name in a namespace.
fn is_function(text: &str) -> bool {
    text.contains("::") && !text.contains(": ") && !text.contains(". ")
}

fn after_brackets(text: &str, open: char, close: char) -> Option<&str> {
    let mut depth = 0usize;
    for (at, letter) in text.char_indices() {
        if letter == open {
            depth += 1;
        } else if letter == close {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return text.get(at + letter.len_utf8()..);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_lose_only_their_source_place() {
        let message = "/src/bridge.cc:2043 Get() [ONNXRuntimeError] : 1 : FAIL : Failed : libcublas.so.13\n";
        assert_eq!(plain(message), "Failed : libcublas.so.13");
        assert_eq!(plain("not enabled in this build"), "not enabled in this build");
        let message = "Non-zero status code returned while running Concat node. Name:'/up/Concat' Status Message: \
                       /src/core/providers/cpu/tensor/concatbase.h:154 onnxruntime::common::Status \
                       onnxruntime::ConcatBase::PrepareForComputeImpl(Ctx*, const Tensors&, Prepare&) const [with \
                       Ctx = onnxruntime::OpKernelContext; Tensors = std::vector<int>] Non concat axis dimensions must \
                       match: Axis 2 has mismatched dimensions of 3 and 4";
        assert_eq!(
            plain(message),
            "Non-zero status code returned while running Concat node. Name:'/up/Concat' Status Message: Non concat \
             axis dimensions must match: Axis 2 has mismatched dimensions of 3 and 4"
        );
        let message = "/src/a.cc:12 bool ns::f() x > 0 was false. /src/b.cpp:7 void ns::g(int) bad (really)";
        assert_eq!(plain(message), "x > 0 was false. bad (really)");
        assert_eq!(
            plain("/src/a.cc:12 a plain sentence (with brackets)"),
            "a plain sentence (with brackets)"
        );
        let line = " Node(s) placed on [CUDAExecutionProvider]. Number of nodes: 35";
        let placement = Placement { provider: "CUDAExecutionProvider".to_string(), nodes: 35 };
        assert_eq!(placement_line(line), Some(placement));
    }
}
