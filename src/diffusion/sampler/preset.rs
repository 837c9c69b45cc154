//! Schedulers by name: diffusers' classes, and the short names that web interfaces gave to a class with settings.

use std::str::FromStr;

use serde_json::Value;

use super::{Class, SamplerError};

/// A scheduler's class and the settings that its name stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    /// The class.
    pub class: Class,
    /// Settings to change, by key.
    pub settings: Vec<(String, Value)>,
}

/// A short name and what it stands for.
struct Short {
    name: &'static str,
    class: Class,
    settings: &'static [(&'static str, Setting)],
}

#[derive(Clone, Copy)]
enum Setting {
    Text(&'static str),
    Number(u64),
    Flag(bool),
}

use Setting::{Flag, Number, Text};

const SHORT: [Short; 11] = [
    Short { name: "ddim", class: Class::Ddim, settings: &[] },
    Short { name: "ddpm", class: Class::Ddpm, settings: &[] },
    Short { name: "euler", class: Class::Euler, settings: &[] },
    Short { name: "euler_a", class: Class::EulerAncestral, settings: &[] },
    Short { name: "heun", class: Class::Heun, settings: &[] },
    Short {
        name: "dpm++_2m",
        class: Class::DpmSolverMultistep,
        settings: &[("algorithm_type", Text("dpmsolver++")), ("solver_order", Number(2))],
    },
    Short {
        name: "dpm++_2m_sde",
        class: Class::DpmSolverMultistep,
        settings: &[("algorithm_type", Text("sde-dpmsolver++")), ("solver_order", Number(2))],
    },
    Short {
        name: "dpm++_3m_sde",
        class: Class::DpmSolverMultistep,
        settings: &[("algorithm_type", Text("sde-dpmsolver++")), ("solver_order", Number(3))],
    },
    Short { name: "plms", class: Class::Pndm, settings: &[("skip_prk_steps", Flag(true))] },
    Short { name: "unipc", class: Class::UniPc, settings: &[] },
    Short { name: "lcm", class: Class::Lcm, settings: &[] },
];

/// The noise levels that the end of a short name asks for.
const SPREADS: [(&str, &str); 3] = [
    ("_karras", "use_karras_sigmas"),
    ("_exponential", "use_exponential_sigmas"),
    ("_beta", "use_beta_sigmas"),
];

/// Other spellings of short names, as they are after [`plain`].
const ALIASES: [(&str, &str); 3] = [("euler_ancestral", "euler_a"), ("uni_pc", "unipc"), ("pndm", "plms")];

impl Short {
    fn spreads(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let class = self.class;
        SPREADS.into_iter().filter(move |(_, key)| class.keys().any(|known| known == *key))
    }

    fn preset(&self, spread: Option<&str>) -> Preset {
        let settings = self.settings.iter().map(|(key, setting)| {
            let value = match setting {
                Text(text) => Value::from(*text),
                Number(number) => Value::from(*number),
                Flag(flag) => Value::from(*flag),
            };
            ((*key).to_string(), value)
        });
        // The pipeline's own spread gives way to the one that is named.
        let spreads = SPREADS.iter().filter(|_| spread.is_some());
        let spreads = spreads.map(|(_, key)| ((*key).to_string(), Value::from(spread == Some(key))));
        let known = |(key, _): &(String, Value)| self.class.keys().any(|known| known == key);
        Preset { class: self.class, settings: settings.chain(spreads.filter(known)).collect() }
    }
}

impl Preset {
    /// Returns every name: the classes', then the short ones.
    pub fn names() -> Vec<String> {
        let short = SHORT.iter().flat_map(|short| {
            let spread = short.spreads().map(|(end, _)| format!("{}{end}", short.name));
            std::iter::once(short.name.to_string()).chain(spread)
        });
        Class::ALL.iter().map(|class| class.name().to_string()).chain(short).collect()
    }
}

impl FromStr for Preset {
    type Err = SamplerError;

    /// Reads the name of a class, or a short name in any of its spellings: `dpm++_2m_karras`, `DPM++ 2M Karras`,
    /// `dpmpp_2m_karras`.
    fn from_str(name: &str) -> Result<Self, SamplerError> {
        if let Ok(class) = name.parse() {
            return Ok(Self { class, settings: Vec::new() });
        }
        let plain = plain(name);
        let spread = SPREADS.iter().find_map(|(end, key)| Some((plain.strip_suffix(end)?, Some(*key))));
        let (base, spread) = spread.unwrap_or((&plain, None));
        let base = ALIASES.iter().find(|(alias, _)| *alias == base).map_or(base, |(_, name)| name);
        let short = SHORT.iter().find(|short| short.name == base);
        let fits = |short: &&Short| spread.is_none_or(|key| short.spreads().any(|(_, known)| known == key));
        short
            .filter(fits)
            .map(|short| short.preset(spread))
            .ok_or_else(|| SamplerError::UnknownName(name.to_owned()))
    }
}

/// Returns a name in lower case, with `_` between its words and `dpm++` for `dpmpp`.
fn plain(name: &str) -> String {
    let words = name.to_lowercase().replace("dpmpp", "dpm++");
    let words: Vec<&str> = words.split([' ', '-', '_']).filter(|word| !word.is_empty()).collect();
    let words = words.strip_prefix(&["k"]).unwrap_or(&words);
    words.join("_")
}
