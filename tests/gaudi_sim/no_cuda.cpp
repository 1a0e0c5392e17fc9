// For a PyTorch that is built with CUDA, which refuses a second kind of device: this library makes it one without.
//
// It is linked to PyTorch's CUDA library, so it is loaded after that has registered its hooks, and replaces them by hooks
// that do nothing. PyTorch looks up its hooks once, during `import torch`. So this library has to be loaded earlier.

#include <ATen/detail/CUDAHooksInterface.h>

#include <memory>

namespace {

std::unique_ptr<at::CUDAHooksInterface> make_hooks(at::CUDAHooksArgs) {
  return std::make_unique<at::CUDAHooksInterface>();
}

[[maybe_unused]] const bool registered = [] {
  at::CUDAHooksRegistry()->Register("CUDAHooks", make_hooks, c10::REGISTRY_PREFERRED);
  return true;
}();

}  // namespace
