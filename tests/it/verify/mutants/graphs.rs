//! Small graphs with much in them: bodies, constants, left out operands, views in front of weights, an output that no
//! plan reaches.

/// The graph, with its If where the plans reach it, or beside: fused graphs don't copy bodies.
pub fn graph(reached: bool) -> String {
    if reached {
        return GRAPH.into();
    }
    let (before, rest) = GRAPH.split_once("i = If(flag)").unwrap();
    let (body, after) = rest.split_once("\n    }>").unwrap();
    let body = body.replace("(h,", "(x_rows,");
    let whole =
        format!("{before}i = Relu(h)\n  x_rows = Reshape(x, row) beside = If(flag){body}\n    }}>{after}");
    whole
        .replace(
            "side = Div(whole, d)",
            "s_ = Div(whole, d) b_ = ReduceSum <keepdims = 0> (beside) side = Add(s_, b_)",
        )
        .replace("int64[1] start", "int64[3] row = {1, -1, 4}, int64[1] start")
}

/// The graph with its layers, and two of its other nodes, in functions.
pub fn with_functions() -> String {
    let functions = r#"
<domain: "own", opset_import: ["" : 21]> Linear (x, w) => (y) { y = MatMul(x, w) }
<domain: "own", opset_import: ["" : 21, "own" : 1]> Between <low, high: float = 0.5> (a, b) => (y) {
  l = Constant <value_float: float = @low> ()
  h = Constant <value_float: float = @high> ()
  s = own.Less(a, b)
  t = Mul(s, l)
  y = Add(t, h)
}
<domain: "own", opset_import: ["" : 21]> Less (a, b) => (y) { y = Sub(a, b) }
"#;
    let calls = GRAPH
        .replace("MatMul(", "own.Linear(")
        .replace("p = Sub(e, f)", "p = own.Between <low = 1.5> (e, f)")
        .replace("[\"\" : 21]", "[\"\" : 21, \"own\" : 1]");
    format!("{calls}{functions}")
}

/// Float32, inline weights.
const GRAPH: &str = r#"<ir_version: 10, opset_import: ["" : 21], producer_name: "hand">
g (float[1,4,H,W] sample, float[3] scale, bool flag) => (float[1,4,H,W] out, float[3] side)
<
  float[4,4,1,1] w_in = {0.5, -0.25, 0.75, 0.1, -0.6, 0.3, 0.2, -0.9, 0.4, 0.8, -0.7, 0.15, 0.35, -0.45, 0.55, 0.65},
  float[4] b_in = {0.1, -0.2, 0.3, -0.4},
  float[4,4,1,1] w_conv = {0.11, 0.22, -0.33, 0.44, 0.55, -0.66, 0.77, 0.88, -0.99, 0.12, 0.23, 0.34, -0.45, 0.56, 0.67, 0.78},
  float[4,4] w_q = {1.0, -2.0, 0.3, 0.4, 0.5, -0.6, 0.7, 0.8, -0.9, 1.1, 0.2, -0.3, 0.6, 0.1, -0.8, 0.9},
  float[4,4] w_k = {0.2, 0.9, -0.4, 0.6, -0.8, 0.1, 0.7, -0.3, 0.5, 0.05, -0.15, 0.25, 0.95, -0.55, 0.45, 0.85},
  float[4,4] w_o = {0.7, 0.6, 0.5, -0.4, 0.3, 0.2, -0.1, 0.8, 0.9, -1.0, 0.15, 0.25, 0.35, 0.45, -0.55, 0.65},
  float low = {-0.5}, float high = {0.8},
  int64[3] tokens = {1, 4, -1}, int64[1] start = {1}, int64[1] end = {3}, int64[1] axis = {2}
>
{
  ["/conv_in/Conv"] x = Conv <kernel_shape = [1, 1], pads = [0, 0, 0, 0]> (sample, w_in, b_in)
  ["/mid_block/resnets.0/Relu"] a = Relu(x)
  ["/mid_block/resnets.0/conv1/Conv"] b = Conv(a, w_conv)
  ["/mid_block/resnets.0/Add"] r = Add(x, b)
  ["/mid_block/attentions.0/Reshape"] t = Reshape <allowzero = 0> (r, tokens)
  ["/mid_block/attentions.0/Transpose"] u = Transpose <perm = [0, 2, 1]> (t)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_q/MatMul"] q = MatMul(u, w_q)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_k/Transpose"] kt = Transpose <perm = [1, 0]> (w_k)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_k/MatMul"] k = MatMul(u, kt)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/Clip"] e = Clip(q, low, high)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/Clip_1"] f = Clip(k, "", high)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/Sub"] p = Sub(e, f)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/Softmax"] n = Softmax <axis = 2> (p)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_out.0/MatMul"] o = MatMul(n, w_o)
  ["/mid_block/attentions.0/transformer_blocks.0/Add"] h = Add(o, u)
  ["/mid_block/attentions.0/If"] i = If(flag) <
    then_branch = th () => (float[b,n,c] th_out) {
      th_k = Constant <value_float = 1.25> ()
      th_out = Mul(h, th_k)
    },
    else_branch = el () => (float[b,n,c] el_out) <float el_k = {0.75}> {
      el_s = Slice(h, start, end, axis)
      el_p = Concat <axis = 2> (el_s, el_s)
      el_out = Sub(el_p, el_k)
    }>
  ["/mid_block/attentions.0/Transpose_1"] v = Transpose <perm = [0, 2, 1]> (i)
  ["/conv_out/Shape"] s = Shape <start = 0> (sample)
  ["/conv_out/Reshape"] y = Reshape(v, s)
  ["/conv_out/Constant"] c = Constant <value = float {1.5}> ()
  ["/conv_out/Mul"] out = Mul(y, c)
  ["/side/Constant"] d = Constant <value_floats = [0.5, 2.0, -1.0]> ()
  ["/side/Cast"] half = Cast <to = 10> (scale)
  ["/side/Cast_1"] whole = Cast <to = 1> (half)
  ["/side/Div"] side = Div(whole, d)
}
"#;

/// A graph with convolutions that reach, an attention, and a timestep that is spread over the batch.
pub fn denoiser() -> String {
    let weights = [
        weights("4,4,3,3", "w_in", 144, 0.0),
        weights("4,4,3,3", "w_conv1", 144, 5.0),
        weights("4,4,3,3", "w_conv2", 144, 9.0),
        weights("4,4", "w_q", 16, 2.0),
        weights("4,4", "w_k", 16, 3.0),
        weights("4,4", "w_v", 16, 4.0),
        weights("4,4", "w_o", 16, 6.0),
        weights("4", "b_o", 4, 7.0),
        weights("1,4", "w_time", 4, 8.0),
    ];
    DENOISER.replace("WEIGHTS", &weights.join(",\n"))
}

/// The denoiser with a skip connection around its middle.
pub fn with_skip() -> String {
    let tail = r#"["/mid_block/attentions.0/Reshape_1"] bi = Reshape(b, s)
  ["/up_blocks.0/Concat"] both = Concat <axis = 1> (bi, x)
  ["/up_blocks.0/resnets.0/nonlinearity/Sigmoid"] un = Sigmoid(both)
  ["/up_blocks.0/resnets.0/conv1/Conv"] uc = Conv <kernel_shape = [1, 1]> (un, w_up)
  ["/up_blocks.0/resnets.0/conv_shortcut/Conv"] us = Conv <kernel_shape = [1, 1]> (both, w_across)
  ["/up_blocks.0/resnets.0/Add"] ua = Add(us, uc)
  ["/conv_out/Tanh"] out = Tanh(ua)"#;
    let weights = [weights("4,8,1,1", "w_up", 32, 11.0), weights("4,8,1,1", "w_across", 32, 12.0)];
    denoiser()
        .replace(r#"["/conv_out/Reshape"] out = Reshape(b, s)"#, tail)
        .replace("  float scale =", &format!("{},\n  float scale =", weights.join(",\n")))
}

/// Declares a tensor.
fn weights(dims: &str, name: &str, count: usize, seed: f32) -> String {
    let value = |i: usize| format!("{:.3}", ((i as f32 + seed) * 0.7371).sin());
    format!("  float[{dims}] {name} = {{{}}}", (0..count).map(value).collect::<Vec<_>>().join(", "))
}

const DENOISER: &str = r#"<ir_version: 10, opset_import: ["" : 21], producer_name: "hand">
g (float[N,4,H,W] sample, float timestep) => (float[N,4,H,W] out)
<
WEIGHTS,
  float scale = {0.5},
  int64[3] tokens = {0, 4, -1}, int64[1] first = {0}, int64[1] second = {1}, int64[2] last = {2, 3}, int64 zero = {0}
>
{
  ["/Shape"] s = Shape(sample)
  ["/Gather"] n = Gather(s, zero)
  ["/Unsqueeze"] rows = Unsqueeze(n, first)
  ["/Expand"] t = Expand(timestep, rows)
  ["/time_embedding/Unsqueeze"] tu = Unsqueeze(t, second)
  ["/time_embedding/MatMul"] te = MatMul(tu, w_time)
  ["/time_embedding/Unsqueeze_1"] tr = Unsqueeze(te, last)
  ["/conv_in/Conv"] x0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (sample, w_in)
  ["/conv_in/Add"] x = Add(x0, tr)
  ["/mid_block/resnets.0/Relu"] a = Relu(x)
  ["/mid_block/resnets.0/conv1/Conv"] c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], dilations = [1, 1]> (a, w_conv1)
  ["/mid_block/resnets.0/conv2/Conv"] c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], dilations = [1, 1]> (c1, w_conv2)
  ["/mid_block/resnets.0/Add"] r = Add(x, c2)
  ["/mid_block/attentions.0/Reshape"] f = Reshape(r, tokens)
  ["/mid_block/attentions.0/Transpose"] u = Transpose <perm = [0, 2, 1]> (f)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_q/MatMul"] q = MatMul(u, w_q)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_k/MatMul"] k = MatMul(u, w_k)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_v/MatMul"] v = MatMul(u, w_v)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/Transpose"] kt = Transpose <perm = [0, 2, 1]> (k)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/MatMul"] qk = MatMul(q, kt)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/Mul"] sc = Mul(qk, scale)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/Softmax"] p = Softmax <axis = -1> (sc)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/MatMul_1"] pv = MatMul(p, v)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_out.0/MatMul"] o = MatMul(pv, w_o)
  ["/mid_block/attentions.0/transformer_blocks.0/attn1/to_out.0/Add"] ob = Add(o, b_o)
  ["/mid_block/attentions.0/transformer_blocks.0/Add"] h = Add(ob, u)
  ["/mid_block/attentions.0/Transpose_1"] b = Transpose <perm = [0, 2, 1]> (h)
  ["/conv_out/Reshape"] out = Reshape(b, s)
}
"#;

/// Convolutions that reach further.
pub const DILATE: &str = "version: 1\nrules:\n  - dilate: { modules: \"mid_block.**.conv{1,2}\", by: 2 }\n";
/// An attention that is its values, and masks.
pub const ATTENTION: &str = "version: 1\nrules:\n  - attention: { modules: \"**.attn1\", map: identity }\n  - prune: { weights: \"**.conv1\", ratio: 0.4 }\n";
/// Changes of both networks.
pub const ALWAYS: &str = "version: 1\nalways:\n  - dilate: { modules: \"mid_block.**.conv1\", by: 2 }\nrules:\n  - prune: { weights: \"**.attn1.**\", ratio: 0.4 }\n";

/// A bypass and masks.
pub const BOTH: &str = "version: 1\nrules:\n  - bypass: mid_block.resnets.0\n  - prune: { weights: \"**.attn1.**\", ratio: 0.4 }\n";
/// Masks alone.
pub const MASKS: &str = "version: 1\nrules:\n  - prune: { weights: \"**.attn1.**\", ratio: 0.4 }\n";
/// Both graphs of a cache, with a change on either side of the cut.
pub const CACHE: &str = "version: 1\nrules:\n  - attention: { modules: \"**.attn1\", map: identity }\n  - prune: { weights: \"up_blocks.**\", ratio: 0.4 }\ncache: { at: up_blocks.0.resnets.0 }\n";
/// Nodes between values and what reads them.
pub const TEMPLATES: &str = "version: 1\nalways:\n  - freeu: { backbone: [1.5], skip: [0.25] }\nrules:\n  - temperature: { modules: \"**.attn1\", factor: 2.25, output_factor: 0.75 }\n";
/// LoRAs merged into both networks and into one, below masks; `FILE` is the file.
pub const MERGED: &str = "version: 1\nalways:\n  - lora: { file: 'FILE', scale: 0.75 }\nrules:\n  - lora: { file: 'FILE', scale: -0.5 }\n  - prune: { weights: \"**.attn1.**\", ratio: 0.4 }\n";
/// The same, cut for a cache.
pub const MERGED_CACHE: &str = "version: 1\nalways:\n  - lora: { file: 'FILE', scale: 0.75 }\nrules:\n  - lora: { file: 'FILE', scale: -0.5 }\n  - prune: { weights: \"up_blocks.**\", ratio: 0.4 }\ncache: { at: up_blocks.0.resnets.0 }\n";
