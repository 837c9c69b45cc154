//! Runs from device memory into device memory, by ONNX Runtime's IoBinding.

use ort::{
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, NoSelectedOutputs, RunOptions},
    value::DynTensor,
};

use super::{
    GRAPH_IDS, OrtSession,
    log::plain,
    values::{copied, element_type, owned},
};
use crate::{
    engine::{
        EngineError, EngineKind, HostTensor, Provider, ProviderKind,
        device::{Capture, DeviceSession, DeviceTensor, Feed},
    },
    onnx::DataType,
};

/// Where a session's tensors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    Host,
    /// Of the CUDA device with this number. TensorRT's providers use CUDA's memory.
    Cuda(i32),
    /// Buffers of the WebGPU context with this number, which the host cannot read.
    WebGpu(i32),
}

impl Memory {
    /// Returns the memory of the first provider.
    pub(super) fn of(providers: &[Provider]) -> Result<Self, String> {
        let Some(provider) = providers.first() else { return Ok(Self::Host) };
        let memory = match provider.kind {
            ProviderKind::Cpu | ProviderKind::OpenVino => return Ok(Self::Host),
            ProviderKind::Cuda | ProviderKind::TensorRt | ProviderKind::NvTensorRtRtx => Self::Cuda,
            ProviderKind::WebGpu => Self::WebGpu,
        };
        let Some(option) = provider.kind.device_option() else { return Ok(Self::Host) };
        let device = provider.options.get(option).map_or("0", String::as_str);
        let number = device.trim().parse().ok().filter(|number| *number >= 0);
        Ok(memory(number.ok_or_else(|| format!("`{option}` is `{device}`; it is a number from 0"))?))
    }

    /// Returns whether its device has kernels for tensors of this type.
    fn computes_in(self, data_type: DataType) -> bool {
        match self {
            Self::Host | Self::Cuda(_) => true,
            // WebGPU's shading language has none but these, and a few kernels that read int64.
            Self::WebGpu(_) => {
                [DataType::FLOAT, DataType::FLOAT16, DataType::INT32, DataType::BOOL].contains(&data_type)
            }
        }
    }

    fn info(self) -> ort::Result<MemoryInfo<'static>> {
        let (device, number) = match self {
            Self::Host => (AllocationDevice::CPU, 0),
            Self::Cuda(number) => (AllocationDevice::CUDA, number),
            Self::WebGpu(number) => (AllocationDevice::WEBGPU_BUFFER, number),
        };
        MemoryInfo::new(device, number, AllocatorType::Device, MemoryType::Default)
    }
}

impl OrtSession {
    fn failed(&self, error: &ort::Error) -> EngineError {
        self.failure(plain(error.message()))
    }

    fn failure(&self, what: String) -> EngineError {
        EngineError::Run { engine: EngineKind::Ort, model: self.model.clone(), what }
    }

    fn bind(&self, inputs: &[(&str, Feed<'_>)]) -> Result<IoBinding, EngineError> {
        let failed = |e: ort::Error| self.failed(&e);
        let mut binding = self.session.create_binding().map_err(failed)?;
        for (name, feed) in inputs {
            match feed {
                Feed::Device(tensor) => binding.bind_input(*name, &tensor.value).map_err(failed)?,
                // The binding holds on to a copy: an owned one, since it would copy a borrowed one by a graph.
                Feed::Host(tensor) => {
                    binding.bind_input(*name, &copied(tensor).map_err(failed)?).map_err(failed)?;
                }
            }
        }
        // Copies to the device are queued.
        binding.synchronize_inputs().map_err(failed)?;
        Ok(binding)
    }

    fn run_options(&self, capture: Option<Capture>) -> ort::Result<RunOptions<NoSelectedOutputs>> {
        let mut options = RunOptions::new()?;
        if self.captures {
            let id = capture.map_or("-1".to_string(), |capture| capture.id().to_string());
            for key in GRAPH_IDS {
                options.set(key, &id)?;
            }
        }
        Ok(options)
    }
}

impl DeviceSession for OrtSession {
    fn allocate(&mut self, data_type: DataType, dims: &[usize]) -> Result<DeviceTensor, EngineError> {
        let failed = |e: ort::Error| self.failed(&e);
        let element = element_type(data_type)
            .ok_or_else(|| self.failure(format!("no tensors of {} on a device", data_type.name())))?;
        let allocator = match self.memory {
            Memory::Host => Allocator::default(),
            memory => Allocator::new(&self.session, memory.info().map_err(failed)?).map_err(failed)?,
        };
        let shape: Vec<i64> = dims.iter().map(|dim| *dim as i64).collect();
        let value = DynTensor::new(&allocator, element, shape).map_err(failed)?;
        Ok(DeviceTensor { value, data_type, dims: dims.to_vec() })
    }

    fn computes_in(&mut self, data_type: DataType) -> bool {
        self.memory.computes_in(data_type)
    }

    fn run_into(
        &mut self,
        inputs: &[(&str, Feed<'_>)],
        outputs: &mut [(&str, &mut DeviceTensor)],
        capture: Option<Capture>,
    ) -> Result<(), EngineError> {
        let mut binding = self.bind(inputs)?;
        for (name, tensor) in outputs {
            binding.bind_output(*name, &mut tensor.value).map_err(|e| self.failed(&e))?;
        }
        let options = self.run_options(capture).map_err(|e| self.failed(&e))?;
        let run = self.session.run_binding_with_options(&binding, &options).map(drop);
        run.map_err(|e| self.failed(&e))?;
        binding.synchronize_outputs().map_err(|e| self.failed(&e))
    }

    fn run_to_host(&mut self, inputs: &[(&str, Feed<'_>)]) -> Result<Vec<(String, HostTensor)>, EngineError> {
        let mut binding = self.bind(inputs)?;
        let host = Memory::Host.info().map_err(|e| self.failed(&e))?;
        for output in &self.outputs {
            binding.bind_output_to_device(&output.name, &host).map_err(|e| self.failed(&e))?;
        }
        let options = self.run_options(None).map_err(|e| self.failed(&e))?;
        let failed = |model: &str, what: String| EngineError::Run {
            engine: EngineKind::Ort,
            model: model.to_string(),
            what,
        };
        let model = &self.model;
        let results = self
            .session
            .run_binding_with_options(&binding, &options)
            .map_err(|e| failed(model, plain(e.message())))?;
        let mut tensors = Vec::with_capacity(self.outputs.len());
        for name in self.outputs.iter().map(|output| output.name.as_str()) {
            let value =
                results.get(name).ok_or_else(|| failed(model, format!("it gave no output `{name}`")))?;
            let tensor = owned(value).map_err(|what| failed(model, format!("output `{name}`: {what}")))?;
            tensors.push((name.to_string(), tensor));
        }
        Ok(tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_where_the_first_provider_computes() {
        let provider = |kind, device: Option<&str>| {
            let options = device.map(|device| ("device_id".to_string(), device.to_string()));
            Provider { kind, options: options.into_iter().collect() }
        };
        assert_eq!(Memory::of(&[]), Ok(Memory::Host));
        assert_eq!(Memory::of(&[provider(ProviderKind::Cpu, None)]), Ok(Memory::Host));
        assert_eq!(Memory::of(&[provider(ProviderKind::Cuda, None)]), Ok(Memory::Cuda(0)));
        let both = [provider(ProviderKind::TensorRt, Some("1")), provider(ProviderKind::Cuda, Some("1"))];
        assert_eq!(Memory::of(&both), Ok(Memory::Cuda(1)));
        assert_eq!(Memory::of(&[provider(ProviderKind::OpenVino, Some("GPU"))]), Ok(Memory::Host));
        assert_eq!(Memory::of(&[provider(ProviderKind::WebGpu, None)]), Ok(Memory::WebGpu(0)));
        for (data_type, on_webgpu) in
            [(DataType::FLOAT, true), (DataType::INT64, false), (DataType::BFLOAT16, false)]
        {
            assert_eq!(Memory::WebGpu(0).computes_in(data_type), on_webgpu);
            assert!(Memory::Cuda(0).computes_in(data_type));
        }
        for device in ["first", "-1"] {
            let error = Memory::of(&[provider(ProviderKind::Cuda, Some(device))]).unwrap_err();
            assert!(error.contains(device), "{error}");
        }
    }
}
