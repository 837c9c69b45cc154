//! Sampler tables against diffusers' own trajectories (`fixtures/sampler_goldens.py`).

use crdiff::diffusion::sampler::{
    Class, Config, Preset, Row, SamplerError, SavedConfig, Table, TimestepType, run,
};
use ndarray::{Array1, Array2};
use ndarray_npy::NpzReader;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The largest difference allowed, of the largest value.
const TOLERANCE: f64 = 1e-5;

#[derive(Deserialize)]
struct Case {
    name: String,
    config: Value,
    eta: f64,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    steps: usize,
    calls: usize,
    sigmas: usize,
    draws: usize,
    init_noise_sigma: f64,
    integer_timesteps: bool,
    kept: Vec<usize>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/samplers").join(name)
}

fn cases() -> Vec<Case> {
    serde_json::from_str(&fs::read_to_string(fixture("cases.json")).unwrap()).unwrap()
}

/// A stand-in for a network, as in the script.
fn network(row: &Row, input: &[f32], output: &mut [f32]) -> Result<(), Infallible> {
    let factor = (0.3 * (row.timestep / 500.0).cos()) as f32;
    for (output, &x) in output.iter_mut().zip(input) {
        *output = factor * x + 0.1 * (3.0 * x).sin();
    }
    Ok(())
}

/// The samples after every call.
fn trajectory(table: &Table, initial: &[f32], noise: &Array2<f32>) -> Vec<Vec<f32>> {
    let mut sample: Vec<f32> = initial.iter().map(|x| x * table.init_noise_sigma() as f32).collect();
    let mut inputs = Vec::new();
    let mut draws = 0;
    let Ok(()) = run(
        table,
        &mut sample,
        |buffer| {
            buffer.copy_from_slice(noise.row(draws).as_slice().unwrap());
            draws += 1;
        },
        |row, input, output| {
            inputs.push(input.iter().map(|x| x / row.input_scale as f32).collect());
            network(row, input, output)
        },
    );
    inputs.push(sample);
    inputs.split_off(1)
}

fn difference(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0.0, |most: f64, &x| most.max(x.abs().into()));
    let differences = ours.iter().zip(theirs).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    differences.fold(0.0, |most: f64, x| if x.is_nan() { f64::NAN } else { most.max(x) }) / largest
}

#[test]
fn every_trajectory_equals_diffusers() {
    let mut data = NpzReader::new(File::open(fixture("data.npz")).unwrap()).unwrap();
    let initial: Array1<f32> = data.by_name("initial").unwrap();
    let noise: Array2<f32> = data.by_name("noise").unwrap();
    let mut wrong = Vec::new();
    for case in cases() {
        let name = &case.name;
        let timesteps: Array1<f64> = data.by_name(&format!("{name}.timesteps")).unwrap();
        let sigmas: Array1<f32> = data.by_name(&format!("{name}.sigmas")).unwrap();
        let samples: Array2<f32> = data.by_name(&format!("{name}.samples")).unwrap();
        let (mut timesteps, mut sigmas, mut samples) =
            (timesteps.into_iter(), sigmas.into_iter(), samples.rows().into_iter());
        let config = Config::from_json(&case.config.to_string()).unwrap();
        for golden in &case.runs {
            let what = format!("{name}, {} steps", golden.steps);
            let table = Table::new(&config, golden.steps, case.eta).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(table.rows().len(), golden.calls, "{what}");
            assert_eq!(table.draws(), golden.draws, "{what}");
            assert_eq!(table.timestep_type() == TimestepType::Int64, golden.integer_timesteps, "{what}");
            let init = (table.init_noise_sigma() / golden.init_noise_sigma - 1.0).abs();
            assert!(init < 1e-6, "{what}: {} is not {}", table.init_noise_sigma(), golden.init_noise_sigma);
            for (row, golden) in table.rows().iter().zip(timesteps.by_ref().take(golden.calls)) {
                // Between two whole timesteps the logarithms of numpy and ours may differ in the last bit.
                let allowed = if golden.fract() == 0.0 { 0.0 } else { 1e-4 };
                assert!((row.timestep - golden).abs() <= allowed, "{what}: {} is not {golden}", row.timestep);
            }
            let golden_sigmas: Vec<f32> = sigmas.by_ref().take(golden.sigmas).collect();
            assert_eq!(table.sigmas().len(), golden_sigmas.len(), "{what}");
            // Rescaling takes roots with torch.sqrt, whose last bit depends on the build and the processor.
            let rescaled = case.config["rescale_betas_zero_snr"] == true;
            let allowed = if rescaled { 1e-5 } else { 2.0 * f32::EPSILON };
            for (ours, theirs) in table.sigmas().iter().zip(golden_sigmas) {
                assert!((ours - theirs).abs() <= allowed * theirs, "{what}: sigma {ours} is not {theirs}");
            }
            let ours = trajectory(&table, initial.as_slice().unwrap(), &noise);
            for (&call, theirs) in golden.kept.iter().zip(samples.by_ref()) {
                let difference = difference(&ours[call], theirs.as_slice().unwrap());
                if difference.is_nan() || difference > TOLERANCE {
                    wrong.push(format!("{what}: after call {call} off by {difference:.1e}"));
                }
            }
        }
        assert!(timesteps.next().is_none() && sigmas.next().is_none() && samples.next().is_none(), "{name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn config(text: &str) -> Config {
    Config::from_json(text).unwrap()
}

/// Parses and makes a table of 10 steps.
fn refused(text: &str) -> String {
    match Config::from_json(text).and_then(|config| Table::new(&config, 10, 0.0)) {
        Ok(_) => panic!("accepted {text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_not_supported_is_refused_by_key_and_value() {
    let cases = [
        ("DDIM", "thresholding", "true"),
        ("DDIM", "beta_schedule", "\"exp\""),
        ("DDIM", "timestep_spacing", "\"middle\""),
        ("DDIM", "prediction_type", "\"flow_prediction\""),
        ("DDIM", "clip_sample_range", "-1.0"),
        ("DDIM", "steps_offset", "-1"),
        ("DDIM", "num_train_timesteps", "0"),
        ("DDIM", "num_train_timesteps", "\"many\""),
        ("DDIM", "set_alpha_to_one", "1"),
        ("DDIM", "trained_betas", "[0.1,0.2]"),
        ("DDPM", "variance_type", "\"learned_range\""),
        ("DDPM", "variance_type", "\"fixed_large_log\""),
        ("EulerDiscrete", "interpolation_type", "\"log_linear\""),
        ("EulerDiscrete", "final_sigmas_type", "\"one\""),
        ("EulerAncestralDiscrete", "prediction_type", "\"sample\""),
        ("HeunDiscrete", "beta_schedule", "\"exp\""),
        ("DPMSolverMultistep", "algorithm_type", "\"dpmsolver\""),
        ("DPMSolverMultistep", "solver_type", "\"rk4\""),
        ("DPMSolverMultistep", "solver_order", "4"),
        ("DPMSolverMultistep", "use_flow_sigmas", "true"),
        ("DPMSolverMultistep", "variance_type", "\"learned\""),
        ("DPMSolverMultistep", "lambda_min_clipped", "100"),
        ("PNDM", "prediction_type", "\"sample\""),
        ("UniPCMultistep", "use_dynamic_shifting", "true"),
        ("UniPCMultistep", "thresholding", "true"),
        ("UniPCMultistep", "disable_corrector", "[\"all\"]"),
        ("LCM", "original_inference_steps", "2000"),
    ];
    for (class, key, value) in cases {
        let class = format!("{class}Scheduler");
        let message = refused(&format!(r#"{{"_class_name": "{class}", "{key}": {value}}}"#));
        for part in [&class, key, value] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }
    let message = refused(
        r#"{"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": true, "use_beta_sigmas": true}"#,
    );
    assert!(message.contains("`use_beta_sigmas: true`"), "{message}");
}

#[test]
fn what_cannot_be_a_scheduler_is_refused() {
    assert!(refused("[]").contains("not a JSON object"));
    assert!(refused("{}").contains("`_class_name`"));
    let message = refused(r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#);
    assert!(
        message.contains("FlowMatchEulerDiscreteScheduler") && message.contains("EulerDiscreteScheduler")
    );
}

#[test]
fn steps_outside_the_schedule_are_refused() {
    let steps = |text: &str, steps| Table::new(&config(text), steps, 0.0).map(|table| table.rows().len());
    let ddim = r#"{"_class_name": "DDIMScheduler"}"#;
    assert_eq!(steps(ddim, 1000).unwrap(), 1000);
    for (text, count) in [
        (ddim, 0),
        (ddim, 1001),
        (r#"{"_class_name": "LCMScheduler"}"#, 51),
        (r#"{"_class_name": "PNDMScheduler"}"#, 3),
    ] {
        assert!(matches!(steps(text, count), Err(SamplerError::Steps { .. })), "{text}, {count} steps");
    }
    let offset = r#"{"_class_name": "DDIMScheduler", "steps_offset": 1}"#;
    assert!(matches!(steps(offset, 1000), Err(SamplerError::Timestep { timestep: 1000, .. })));
    // numpy's arange has a value too many here.
    let trailing = r#"{"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}"#;
    assert_eq!(steps(trailing, 61).unwrap(), 61);
}

#[test]
fn a_division_by_zero_is_refused() {
    for text in [
        r#"{"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}"#,
        r#"{"_class_name": "UniPCMultistepScheduler", "predict_x0": false}"#,
        r#"{"_class_name": "UniPCMultistepScheduler", "lower_order_final": false}"#,
    ] {
        assert!(refused(text).contains("not finite"), "{text}");
    }
}

#[test]
fn a_config_as_python_writes_it_is_read() {
    let dpm = config(
        "{\"_class_name\": \"DPMSolverMultistepScheduler\", \"note\": \"-Infinity \\\" -Infinity\",\n \
         \"lambda_min_clipped\": -Infinity, \"variance_type\": null, \"skip_prk_steps\": true}",
    );
    let table = Table::new(&dpm, 4, 0.0).unwrap();
    assert_eq!(table.sigmas().len(), 5);
    let euler =
        dpm.with_class("EulerDiscreteScheduler".parse().unwrap()).with("timestep_spacing", "trailing");
    let table = Table::new(&euler, 4, 0.0).unwrap();
    let timesteps: Vec<f64> = table.rows().iter().map(|row| row.timestep).collect();
    assert_eq!(timesteps, [999.0, 749.0, 499.0, 249.0]);
}

#[test]
fn rows_say_how_far_they_are() {
    let heun = Table::new(&config(r#"{"_class_name": "HeunDiscreteScheduler"}"#), 4, 0.0).unwrap();
    let steps: Vec<usize> = heun.rows().iter().map(|row| row.step).collect();
    assert_eq!(steps, [0, 0, 1, 1, 2, 2, 3]);
    for (row, &sigma) in heun.rows().iter().zip(heun.sigmas()) {
        assert_eq!(row.sigma, f64::from(sigma));
        assert_eq!(row.fraction, row.step as f64 / 4.0);
    }
    let warm_up = Table::new(&config(r#"{"_class_name": "PNDMScheduler"}"#), 5, 0.0).unwrap();
    let steps: Vec<usize> = warm_up.rows().iter().map(|row| row.step).collect();
    assert_eq!(steps, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 4]);
    assert_eq!(warm_up.depth(), 12);
    let pndm = config(r#"{"_class_name": "PNDMScheduler", "skip_prk_steps": true}"#);
    let steps: Vec<usize> = Table::new(&pndm, 3, 0.0).unwrap().rows().iter().map(|row| row.step).collect();
    assert_eq!(steps, [0, 0, 1, 2]);
}

#[test]
fn an_error_of_the_network_stops_the_loop() {
    let table = Table::new(&config(r#"{"_class_name": "DDIMScheduler"}"#), 4, 0.0).unwrap();
    let mut calls = 0;
    let result = run(
        &table,
        &mut [1.0, 2.0],
        |_| (),
        |_, _, _| {
            calls += 1;
            if calls == 3 { Err("out of memory") } else { Ok(()) }
        },
    );
    assert_eq!((result, calls), (Err("out of memory"), 3));
}

/// Values that some key accepts and values that none does.
fn value() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "linear",
        "scaled_linear",
        "squaredcos_cap_v2",
        "leading",
        "trailing",
        "linspace",
        "epsilon",
        "v_prediction",
        "sample",
        "dpmsolver++",
        "sde-dpmsolver++",
        "midpoint",
        "heun",
        "bh1",
        "zero",
        "sigma_min",
        "continuous",
        "",
    ]);
    prop_oneof![
        words.prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        (0_u64..60).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-2.0..2.0).prop_map(|x: f64| Value::from(x)),
        Just(Value::Null),
        prop::collection::vec(any::<f64>(), 0..60).prop_map(Value::from),
    ]
}

fn keyed_values() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let keys = prop::sample::select(vec![
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "clip_sample",
        "clip_sample_range",
        "set_alpha_to_one",
        "steps_offset",
        "prediction_type",
        "timestep_spacing",
        "rescale_betas_zero_snr",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
        "sigma_min",
        "sigma_max",
        "final_sigmas_type",
        "solver_order",
        "solver_type",
        "algorithm_type",
        "lower_order_final",
        "lambda_min_clipped",
        "predict_x0",
        "disable_corrector",
        "skip_prk_steps",
        "original_inference_steps",
        "timestep_scaling",
        "timestep_type",
        "variance_type",
    ]);
    prop::collection::vec((keys, value()), 0..6)
}

proptest! {
    #[test]
    fn any_settings_give_a_finite_table_or_an_error(
        class in prop::sample::select(Class::ALL.to_vec()),
        settings in keyed_values(),
        steps in 0_usize..70,
        eta in prop_oneof![Just(0.0), any::<f64>()],
    ) {
        let mut config = config(r#"{"_class_name": "DDIMScheduler"}"#).with_class(class);
        for (key, value) in settings {
            config = config.with(key, value);
        }
        if let Ok(table) = Table::new(&config, steps, eta) {
            let mut calls = 0;
            let Ok(()) = run(&table, &mut [0.5; 3], |noise| noise.fill(1.0), |row, input, output| {
                calls += 1;
                network(row, input, output)
            });
            prop_assert_eq!(calls, table.rows().len());
            for row in table.rows() {
                prop_assert!(row.next.iter().all(|term| term.weight.is_finite()));
            }
        }
    }

    #[test]
    fn any_text_is_a_config_or_an_error(text in r#"\PC*|\{"_class_name": "LCMScheduler", \PC*"#) {
        let _ = Config::from_json(&text);
    }
}

#[test]
fn every_class_has_the_settings_that_it_has_in_diffusers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/samplers/keys.json");
    let classes: BTreeMap<String, Vec<String>> =
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(classes.len(), Class::ALL.len());
    for class in Class::ALL {
        let mut keys: Vec<&str> = class.keys().collect();
        keys.sort_unstable();
        assert_eq!(keys, classes[class.name()], "{class}");
    }
}

#[test]
fn a_setting_of_no_scheduler_or_of_another_one_is_refused() {
    let euler = || config(r#"{"_class_name": "EulerDiscreteScheduler"}"#);
    let set = |key: &str| euler().with_options(&[(key.to_string(), true.into())]).unwrap_err().to_string();
    assert_eq!(
        set("use_karas_sigmas"),
        "EulerDiscreteScheduler has no setting `use_karas_sigmas`; did you mean `use_karras_sigmas`?"
    );
    assert_eq!(
        set("solver_order"),
        "EulerDiscreteScheduler has no setting `solver_order`; it is one of DPMSolverMultistepScheduler, \
         UniPCMultistepScheduler"
    );
    assert!(set("x").contains("it has num_train_timesteps, beta_start"), "{}", set("x"));
    assert!(euler().with_options(&[("use_karras_sigmas".to_string(), true.into())]).is_ok());
}

/// The names are those of web interfaces; what they stand for is from diffusers' table of them.
#[test]
fn short_names_are_classes_with_settings() {
    let preset = |name: &str| name.parse::<Preset>().unwrap();
    let (sde, karras) = ("sde-dpmsolver++", "use_karras_sigmas");
    for name in ["dpm++_2m_sde_karras", "DPM++ 2M SDE Karras", "dpmpp-2m-sde-karras"] {
        let preset = preset(name);
        assert_eq!(preset.class, Class::DpmSolverMultistep, "{name}");
        let has = |key: &str, value: Value| preset.settings.contains(&(key.to_string(), value));
        assert!(has("algorithm_type", sde.into()) && has(karras, true.into()), "{name}: {preset:?}");
        assert!(has("use_beta_sigmas", false.into()) && has("solver_order", 2.into()), "{name}: {preset:?}");
    }
    for (name, class) in [
        ("euler", Class::Euler),
        ("Euler a", Class::EulerAncestral),
        ("k_euler_ancestral", Class::EulerAncestral),
        ("heun_karras", Class::Heun),
        ("PLMS", Class::Pndm),
        ("uni_pc", Class::UniPc),
        ("LCMScheduler", Class::Lcm),
    ] {
        assert_eq!(preset(name).class, class, "{name}");
    }
    // Each name makes a table, and each class is among them.
    let saved =
        SavedConfig::from_json(r#"{"_class_name": "LMSDiscreteScheduler", "beta_end": 0.012}"#).unwrap();
    assert!(saved.config(None).is_err());
    for name in Preset::names() {
        let preset = preset(&name);
        let config = saved.config(Some(preset.class)).unwrap().with_options(&preset.settings).unwrap();
        Table::new(&config, 10, 0.0).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let unknown = |name: &str| name.parse::<Preset>().unwrap_err().to_string();
    assert_eq!(unknown("eulr_a"), "there is no scheduler `eulr_a`; did you mean `euler_a`?");
    assert_eq!(
        unknown("DPMSolverMultistep"),
        "there is no scheduler `DPMSolverMultistep`; did you mean `DPMSolverMultistepScheduler`?"
    );
    for name in ["lms", "ddim_karras", "dpm++_sde", ""] {
        assert!(unknown(name).contains("; there are DDIMScheduler, "), "{}", unknown(name));
    }
}
