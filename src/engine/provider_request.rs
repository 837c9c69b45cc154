//! Execution providers as users ask for them, on the command line, in Python and in plans.

use std::collections::BTreeMap;

use super::{DeviceWord, Engine, EngineError, Provider, ProviderKind};

/// Options of providers, by the providers' names.
pub type PlanOptions = BTreeMap<String, BTreeMap<String, String>>;

/// The providers that somebody asks for, instead of a plan's or with its options.
#[derive(Clone, Debug, Default)]
pub struct ProviderRequest {
    /// The device.
    pub device: Option<DeviceWord>,
    /// The providers, the preferred one first; none to leave them to the device or the plan.
    pub providers: Vec<Provider>,
    /// Further options, `KEY` or `PROVIDER.KEY` with a value: those without a provider are for the first one.
    pub options: Vec<(String, String)>,
}

impl ProviderRequest {
    /// Returns the providers, with their options: the plan's (its `names`, its `options` by provider), those that belong to the
    /// device or were given with the provider, and the further ones; the last of a name counts.
    ///
    /// # Errors
    /// [`EngineError`] for a name that is none, a device that `engine` has no provider for, two requests that exclude each
    /// other, and options that no provider of these takes.
    pub fn resolve(
        &self,
        engine: &dyn Engine,
        names: &[&str],
        options: &PlanOptions,
    ) -> Result<Vec<Provider>, EngineError> {
        let mut providers = match self.device {
            Some(device) if self.providers.is_empty() => device.providers(engine)?,
            Some(device) => return Err(EngineError::DeviceAndProviders { device }),
            None if self.providers.is_empty() => names
                .iter()
                .map(|name| Ok(name.parse::<ProviderKind>()?.into()))
                .collect::<Result<_, EngineError>>()?,
            None => self.providers.clone(),
        };
        let is_of_the_plan = self.device.is_none() && self.providers.is_empty();
        for (name, options) in options {
            let provider: ProviderKind = name.parse()?;
            match providers.iter_mut().find(|known| known.kind == provider) {
                Some(known) => {
                    let own = std::mem::replace(&mut known.options, options.clone());
                    known.options.extend(own);
                }
                None if is_of_the_plan => return Err(EngineError::PlanOptions { provider }),
                None => {}
            }
        }
        for (name, value) in &self.options {
            let prefix = name.split_once('.').and_then(|(kind, key)| Some((kind.parse().ok()?, key)));
            let (kind, key): (Option<ProviderKind>, &str) =
                prefix.map_or((None, name), |(kind, key)| (Some(kind), key));
            let known = providers.iter_mut().find(|known| kind.is_none_or(|kind| known.kind == kind));
            let known = known.ok_or_else(|| EngineError::NoProviderOfOption { option: name.clone() })?;
            known.options.insert(key.to_string(), value.clone());
        }
        providers.iter().try_for_each(Provider::check)?;
        Ok(providers)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::*;
    use crate::engine::{EngineKind, RtenEngine, Session, SessionOptions};

    fn plan(options: &[(&str, &str, &str)]) -> PlanOptions {
        let mut found = PlanOptions::new();
        for (provider, key, value) in options {
            found.entry(provider.to_string()).or_default().insert(key.to_string(), value.to_string());
        }
        found
    }

    fn options(provider: &Provider) -> Vec<(&str, &str)> {
        provider.options.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    #[test]
    fn what_is_asked_for_wins_over_the_plan() {
        let of_plan =
            plan(&[("cuda", "device_id", "1"), ("cuda", "use_tf32", "0"), ("tensorrt", "device_id", "1")]);
        let names = ["tensorrt", "cuda"];
        let found = ProviderRequest::default().resolve(&RtenEngine, &names, &of_plan).unwrap();
        assert_eq!(
            found.iter().map(|p| p.kind).collect::<Vec<_>>(),
            [ProviderKind::TensorRt, ProviderKind::Cuda]
        );
        assert_eq!(options(&found[1]), [("device_id", "1"), ("use_tf32", "0")]);

        let mut cuda = Provider::from(ProviderKind::Cuda);
        cuda.options.insert("device_id".to_string(), "2".to_string());
        let mut asked = ProviderRequest { providers: vec![cuda], ..ProviderRequest::default() };
        let found = asked.resolve(&RtenEngine, &names, &of_plan).unwrap();
        assert_eq!(options(&found[0]), [("device_id", "2"), ("use_tf32", "0")]);
        asked.options = vec![("cuda.device_id".into(), "3".into()), ("use_tf32".into(), "1".into())];
        let found = asked.resolve(&RtenEngine, &names, &of_plan).unwrap();
        assert_eq!(options(&found[0]), [("device_id", "3"), ("use_tf32", "1")]);
    }

    /// An engine with OpenVINO, which loads nothing.
    struct WithOpenVino;

    impl Engine for WithOpenVino {
        fn kind(&self) -> EngineKind {
            EngineKind::Ort
        }

        fn version(&self) -> &str {
            "0"
        }

        fn load(&self, _: &Path, _: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
            Err(EngineError::NotBuilt { engine: self.kind() })
        }

        fn load_bytes(&self, _: Bytes, _: &SessionOptions) -> Result<Box<dyn Session>, EngineError> {
            Err(EngineError::NotBuilt { engine: self.kind() })
        }

        fn has_provider(&self, provider: ProviderKind) -> bool {
            provider == ProviderKind::OpenVino
        }
    }

    #[test]
    fn a_plan_does_not_move_a_device() {
        let device = "npu".parse().ok();
        let asked = ProviderRequest { device, ..ProviderRequest::default() };
        let of_plan = plan(&[("openvino", "precision", "FP32"), ("openvino", "device_type", "CPU")]);
        let found = asked.resolve(&WithOpenVino, &[], &of_plan).unwrap();
        assert_eq!(options(&found[0]), [("device_type", "NPU"), ("precision", "FP32")]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let said = |request: &ProviderRequest, of_plan: &PlanOptions| {
            request.resolve(&RtenEngine, &[], of_plan).unwrap_err().to_string()
        };
        let none = PlanOptions::new();
        let device = Some(DeviceWord::By(ProviderKind::Cuda));
        let both = ProviderRequest { device, providers: vec![ProviderKind::Cpu.into()], options: Vec::new() };
        assert!(said(&both, &none).contains("`cuda`"));
        let option =
            ProviderRequest { options: vec![("device_id".into(), "1".into())], ..ProviderRequest::default() };
        assert!(said(&option, &none).contains("`device_id` is for a provider that isn't run"));
        let gpu = ProviderRequest { device: Some(DeviceWord::Gpu), ..ProviderRequest::default() };
        assert!(said(&gpu, &none).contains("no execution provider for device `gpu`"));
        let plan = plan(&[("cuda", "device_id", "1")]);
        assert!(
            said(&ProviderRequest::default(), &plan)
                .contains("are for cuda, which is not in its `providers`")
        );
    }
}
