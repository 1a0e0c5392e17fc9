// The device `hpu` on host memory: what PyTorch needs to believe in it, and not one operation of its own.
//
// Every operation is the CPU's. `run_on_host` lends the CPU kernel tensors that share the memory of the hpu tensors and
// gives its results back as hpu tensors: what shares memory with an operand keeps sharing it (views, in-place
// operations, `set_`), new memory is adopted, memory that an operation enlarged is taken over. Nothing is copied.

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/HPUHooksInterface.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>

namespace {

using at::Device;
using at::IValue;
using at::Storage;
using at::Tensor;
using at::TensorImpl;
using c10::DeviceIndex;
using c10::DispatchKey;

// ---------------------------------------------------------------------------------------------------------------------
// Cards: how many there are, and whether another process holds them

int environment_number(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : std::atoi(text);
}

DeviceIndex count_cards() {
  const int cards = environment_number("SIMULATED_GAUDI_CARDS", 8);
  const char* visible = std::getenv("HABANA_VISIBLE_MODULES");  // "0,1,2"
  if (visible == nullptr || *visible == '\0') {
    return static_cast<DeviceIndex>(cards);
  }
  const std::string modules(visible);
  const auto listed = 1 + std::count(modules.begin(), modules.end(), ',');
  return static_cast<DeviceIndex>(std::min<int64_t>(cards, listed));
}

std::atomic<bool> acquired{false};
std::atomic<int64_t> operations{0};
std::atomic<int64_t> collectives{0};
std::atomic<int64_t> bytes_in_use{0};
std::atomic<int64_t> most_bytes_in_use{0};

void register_autocast();

// A process takes a card when it first touches one, its local rank's, and fails as a real one does when all are taken.
void acquire() {
  static std::mutex once;
  if (acquired) {
    return;
  }
  const std::lock_guard<std::mutex> lock(once);
  if (acquired) {
    return;
  }
  const int cards = count_cards();
  TORCH_CHECK(cards > 0, "synStatus=8 [Device not found] Device acquire failed. (simulated Gaudi: no card visible)");
  const int rank = environment_number("LOCAL_RANK", environment_number("OMPI_COMM_WORLD_LOCAL_RANK", 0));
  const int busy = environment_number("SIMULATED_GAUDI_BUSY", 0);
  TORCH_CHECK(
      rank < cards - busy,
      "synStatus=8 [Device not found] Device acquire failed. (simulated Gaudi: local rank ", rank, ", ", cards,
      " cards, ", busy, " of them busy)");
  register_autocast();
  acquired = true;
}

// Each process has one card and calls it 0, whichever of the node's it is.
const Device CARD(at::kHPU, 0);

void check_card(Device device) {
  TORCH_CHECK(
      device.index() <= 0, "invalid device ", device, ": a process has one card of the simulated Gaudi, hpu:0");
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  at::DeviceType type() const override { return at::kHPU; }
  Device exchangeDevice(Device device) const override {
    check_card(device);
    return CARD;
  }
  Device getDevice() const override { return CARD; }
  void setDevice(Device device) const override { check_card(device); }
  void uncheckedSetDevice(Device) const noexcept override {}
  // Everything is done when its call returns: one stream, and every event has happened.
  c10::Stream getStream(Device) const override { return c10::Stream(c10::Stream::DEFAULT, CARD); }
  c10::Stream getDefaultStream(Device device) const override { return getStream(device); }
  c10::Stream getStreamFromGlobalPool(Device device, bool) const override { return getStream(device); }
  c10::Stream getNewStream(Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  DeviceIndex deviceCount() const noexcept override { return count_cards(); }
};

C10_REGISTER_GUARD_IMPL(HPU, Guard)

// ---------------------------------------------------------------------------------------------------------------------
// Memory: the host's, counted

void count_bytes(int64_t bytes) {
  const int64_t now = bytes_in_use += bytes;
  int64_t most = most_bytes_in_use;
  while (now > most && !most_bytes_in_use.compare_exchange_weak(most, now)) {
  }
}

struct Adopted {  // the host memory that a piece of device memory consists of
  c10::DataPtr memory;
  int64_t bytes;
};

void free_adopted(void* context) {
  auto* adopted = static_cast<Adopted*>(context);
  count_bytes(-adopted->bytes);
  delete adopted;
}

// A card of SIMULATED_GAUDI_MEMORY bytes that is full says so in the words of Habana's bridge.
void check_room(size_t bytes) {
  const char* most = std::getenv("SIMULATED_GAUDI_MEMORY");
  const bool fits = most == nullptr || *most == '\0' || bytes_in_use + static_cast<int64_t>(bytes) <= std::atoll(most);
  TORCH_CHECK(
      fits, "[Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::", bytes, " (", bytes >> 20, ")MB");
}

c10::DataPtr adopt(c10::DataPtr memory, size_t bytes) {
  check_room(bytes);
  void* address = memory.get();
  count_bytes(static_cast<int64_t>(bytes));
  auto* adopted = new Adopted{std::move(memory), static_cast<int64_t>(bytes)};
  return c10::DataPtr(address, adopted, &free_adopted, CARD);
}

struct HostMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    acquire();
    return adopt(c10::GetCPUAllocator()->allocate(bytes), bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_adopted; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

HostMemory allocator;
REGISTER_ALLOCATOR(at::kHPU, &allocator)

// ---------------------------------------------------------------------------------------------------------------------
// One operation on the host

bool is_device(const Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == at::kHPU;
}

void free_storage(void* context) {
  delete static_cast<Storage*>(context);
}

// A tensor like `like` in another storage, on the backend of `key`.
Tensor in_storage(const Tensor& like, Storage storage, DispatchKey key) {
  auto made = at::detail::make_tensor<TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  TensorImpl* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) {
    impl->set_wrapped_number(true);
  }
  impl->_set_conj(like.is_conj());
  impl->_set_neg(like.is_neg());
  return made;
}

// The operands of one call as the host sees them, and the way back. Also kept by the Work of a collective.
struct Call {
  struct Lent {
    Tensor device, host;
  };
  std::vector<Lent> lent;
  std::unordered_map<TensorImpl*, size_t> by_device, by_host;  // places in `lent`
  std::unordered_map<c10::StorageImpl*, Storage> host_storages, device_storages;  // of the other side
  std::vector<Storage> kept;  // so that no address in the maps is used again
  std::set<TensorImpl*> host_operands;
  bool flat = false;  // lend every tensor in one dimension

  void pair(const Storage& device, const Storage& host) {
    host_storages[device.unsafeGetStorageImpl()] = host;
    device_storages[host.unsafeGetStorageImpl()] = device;
    kept.push_back(device);
    kept.push_back(host);
  }

  Storage storage_to_host(const Storage& device) {
    const auto found = host_storages.find(device.unsafeGetStorageImpl());
    if (found != host_storages.end()) {
      return found->second;
    }
    c10::DataPtr memory(
        device.unsafeGetStorageImpl()->mutable_data(), new Storage(device), &free_storage, Device(at::kCPU));
    Storage host(
        Storage::use_byte_size_t(), device.nbytes(), std::move(memory), c10::GetCPUAllocator(), /*resizable=*/true);
    pair(device, host);
    return host;
  }

  Storage storage_to_device(const Storage& host) {
    const auto found = device_storages.find(host.unsafeGetStorageImpl());
    if (found != device_storages.end()) {
      return found->second;
    }
    c10::DataPtr memory(
        host.unsafeGetStorageImpl()->mutable_data(), new Storage(host), &free_storage, Device(at::kCPU));
    Storage device(
        Storage::use_byte_size_t(), host.nbytes(), adopt(std::move(memory), host.nbytes()), &allocator,
        /*resizable=*/true);
    pair(device, host);
    return device;
  }

  Tensor tensor_to_host(const Tensor& tensor) {
    if (!is_device(tensor)) {
      if (tensor.defined()) {
        host_operands.insert(tensor.unsafeGetTensorImpl());
      }
      return tensor;
    }
    TORCH_CHECK_NOT_IMPLEMENTED(
        tensor.layout() == at::kStrided && !tensor.is_quantized(), "simulated Gaudi: dense tensors only");
    const auto [place, is_new] = by_device.emplace(tensor.unsafeGetTensorImpl(), lent.size());
    if (is_new) {
      const Tensor host = in_storage(tensor, storage_to_host(tensor.storage()), DispatchKey::CPU);
      lent.push_back({tensor, flat ? host.view({-1}) : host});
      by_host[lent.back().host.unsafeGetTensorImpl()] = place->second;
    }
    return lent[place->second].host;
  }

  Tensor tensor_to_device(const Tensor& tensor) {
    if (!tensor.defined() || host_operands.count(tensor.unsafeGetTensorImpl())) {
      return tensor;
    }
    const auto found = by_host.find(tensor.unsafeGetTensorImpl());
    if (found != by_host.end()) {
      return lent[found->second].device;
    }
    TORCH_CHECK_NOT_IMPLEMENTED(
        tensor.layout() == at::kStrided && !tensor.is_quantized(), "simulated Gaudi: dense tensors only");
    return in_storage(tensor, storage_to_device(tensor.storage()), DispatchKey::HPU);
  }

  // An operand or result: a tensor, a list of such (of lists too), a storage, a device; anything else stays as it is.
  IValue to_host(const IValue& value) {
    if (value.isTensor()) {
      return tensor_to_host(value.toTensor());
    }
    if (value.isList() && holds_tensors(value)) {
      c10::impl::GenericList list(value.toList().elementType());
      for (const IValue& element : value.toListRef()) {
        list.push_back(to_host(element));
      }
      return list;
    }
    if (value.isStorage() && value.toStorage().device_type() == at::kHPU) {
      return storage_to_host(value.toStorage());
    }
    if (value.isDevice() && value.toDevice().type() == at::kHPU) {
      check_card(value.toDevice());
      return Device(at::kCPU);
    }
    return value;
  }

  IValue to_device(const IValue& value) {
    if (value.isTensor()) {
      return tensor_to_device(value.toTensor());
    }
    if (value.isList() && holds_tensors(value)) {
      c10::impl::GenericList list(value.toList().elementType());
      for (const IValue& element : value.toListRef()) {
        list.push_back(to_device(element));
      }
      return list;
    }
    return value;
  }

  static bool holds_tensors(const IValue& list) {
    const auto values = list.toListRef();
    return std::any_of(values.begin(), values.end(), [](const IValue& value) {
      return value.isTensor() || (value.isList() && holds_tensors(value));
    });
  }

  // What the operation did to its operands' shapes and storages, done to the device's.
  void write_back() {
    for (const auto& [device, host] : lent) {
      const Storage storage = storage_to_device(host.storage());
      if (storage.unsafeGetStorageImpl() != device.storage().unsafeGetStorageImpl()) {
        device.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
      }
      if (flat) {
        continue;
      }
      if (host.sizes() != device.sizes() || host.strides() != device.strides() ||
          host.storage_offset() != device.storage_offset()) {
        device.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
      }
    }
    for (size_t place = 0; place + 1 < kept.size(); place += 2) {
      take_enlarged(kept[place], kept[place + 1]);
    }
  }

  void take_enlarged(const Storage& device, const Storage& host) {
    c10::StorageImpl* to = device.unsafeGetStorageImpl();
    c10::StorageImpl* from = host.unsafeGetStorageImpl();
    if (to->data() != from->data()) {
      c10::DataPtr memory(from->mutable_data(), new Storage(host), &free_storage, Device(at::kCPU));
      to->set_data_ptr_noswap(adopt(std::move(memory), from->nbytes()));
    }
    if (to->nbytes() != from->nbytes()) {
      to->set_nbytes(from->nbytes());
    }
  }
};

// Gloo's work on the host tensors of a collective: whoever waits for its future gets the device tensors.
struct Collective final : c10d::Work {
  Collective(c10::intrusive_ptr<c10d::Work> work, std::shared_ptr<Call> call)
      : c10d::Work(-1, work->retrieveOpType()), work_(std::move(work)), call_(std::move(call)) {}

  bool isCompleted() override { return work_->isCompleted(); }
  bool isSuccess() const override { return work_->isSuccess(); }
  std::exception_ptr exception() const override { return work_->exception(); }
  int sourceRank() const override { return work_->sourceRank(); }
  void synchronize() override { work_->synchronize(); }
  bool wait(std::chrono::milliseconds timeout) override { return work_->wait(timeout); }
  void abort() override { work_->abort(); }
  std::vector<Tensor> result() override {
    std::vector<Tensor> tensors = work_->result();
    for (Tensor& tensor : tensors) {
      tensor = call_->tensor_to_device(tensor);
    }
    return tensors;
  }
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    auto host = work_->getFuture();
    auto device = c10::make_intrusive<c10::ivalue::Future>(host->elementType());
    host->addCallback([device, call = call_](c10::ivalue::Future& done) {
      if (done.hasError()) {
        device->setError(done.exception_ptr());
      } else {
        device->markCompleted(call->to_device(done.value()), std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>>());
      }
    });
    return device;
  }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  std::shared_ptr<Call> call_;
};

// Operations that take operands from the host beside the device's: optimum-habana's beam search adds a CPU `arange`.
const char* const MIXED[] = {
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "remainder.Tensor", "maximum", "minimum", "gather",
    "index_select", "eq.Tensor", "ne.Tensor", "lt.Tensor", "le.Tensor", "gt.Tensor", "ge.Tensor",
};
// Indices may lie on the host, as with PyTorch's other devices.
const char* const INDEXED[] = {"index", "index_put", "index_put_", "_index_put_impl_"};

std::set<std::string> names_of_mixed() {
  std::set<std::string> names(std::begin(INDEXED), std::end(INDEXED));
  for (const std::string name : MIXED) {
    names.insert(name.substr(0, name.find('.')));
  }
  return names;
}

void check_host_operands(const std::string& operation, const Call& call) {
  static const std::set<std::string> mixed = names_of_mixed();
  for (TensorImpl* operand : call.host_operands) {
    TORCH_CHECK(
        operand->dim() == 0 || mixed.count(operation.substr(operation.find("::") + 2)), operation,
        ": Expected all tensors to be on the same device, but found ", CARD, " and ", operand->device(),
        " (simulated Gaudi)");
  }
}

// The collectives whose parts gloo takes in one dimension only.
bool is_flat(const std::string& operation) {
  static const std::set<std::string> names = {
      "c10d::_allgather_base_", "c10d::_reduce_scatter_base_", "c10d::allgather_into_tensor_coalesced_",
      "c10d::reduce_scatter_tensor_coalesced_"};
  return names.count(operation) > 0;
}

bool is_work(const c10::Argument& returned) {
  return returned.type()->str() == "__torch__.torch.classes.c10d.Work";
}

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  acquire();
  ++operations;
  at::AutoDispatchBelowADInplaceOrView guard;
  const std::string& name = op.operator_name().name;
  const auto call = std::make_shared<Call>();
  call->flat = is_flat(name);
  for (size_t place = stack->size() - op.schema().arguments().size(); place < stack->size(); ++place) {
    (*stack)[place] = call->to_host((*stack)[place]);
  }
  const bool collective = name.rfind("c10d::", 0) == 0;
  if (!collective) {
    check_host_operands(name, *call);
  }
  op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), stack);
  call->write_back();

  const auto& returns = op.schema().returns();
  size_t place = stack->size() - returns.size();
  for (const auto& returned : returns) {
    IValue& value = (*stack)[place++];
    if (collective && is_work(returned)) {
      ++collectives;
      value = c10::intrusive_ptr<c10d::Work>(c10::make_intrusive<Collective>(value.toCustomClass<c10d::Work>(), call));
    } else {
      value = call->to_device(value);
    }
  }
}

// To the device, from it and within it: memory is the host's on both sides.
Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  acquire();
  ++operations;
  at::AutoDispatchBelowADInplaceOrView guard;
  Call call;
  call.tensor_to_host(to).copy_(call.tensor_to_host(from));
  return to;
}

// Attention by plain operations; also while `torch.compile` traces, where the tensors hold nothing to run on.
int64_t choose_attention(
    const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool, std::optional<double>,
    bool) {
  return int64_t(sdp::SDPBackend::math);
}

// There is one stream, so memory is never used by another one. ZeRO-3 and FSDP tell of it.
void record_stream(Tensor&, c10::Stream) {}

TORCH_LIBRARY_IMPL(_, HPU, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, HPU, m) {
  m.impl("_copy_from", &copy_from);
  m.impl("_fused_sdp_choice", &choose_attention);
  m.impl("record_stream", &record_stream);
  for (const char* name : MIXED) {  // in place of PyTorch's composite kernels, which refuse host operands
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Autocast: PyTorch's own lists of operations, or those in the files that GaudiConfig names, as far as PyTorch knows them

TORCH_LIBRARY_IMPL(_, AutocastHPU, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

std::set<std::string> words_of_file(const char* variable) {
  const char* path = std::getenv(variable);
  std::ifstream file(path == nullptr ? "" : path);
  return {std::istream_iterator<std::string>(file), std::istream_iterator<std::string>()};
}

// Which operations are cast, and the names of the given lists that no operation here answers to.
struct CastLists {
  const std::set<std::string> lower = words_of_file("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST");
  const std::set<std::string> fp32 = words_of_file("PT_HPU_AUTOCAST_FP32_OPS_LIST");
  std::set<std::string> known;

  // 'l' for lower precision, 'f' for fp32, '=' as in PyTorch's lists, '-' not at all.
  char choose(const std::string& arguments, char unlisted = '-') {
    const std::string name = arguments.substr(0, arguments.find(','));
    known.insert(name);
    if (lower.empty() && fp32.empty()) {
      return '=';
    }
    return lower.count(name) ? 'l' : fp32.count(name) ? 'f' : unlisted;
  }

  void tell_unknown() const {
    std::string names;
    for (const auto* list : {&lower, &fp32}) {
      for (const std::string& name : *list) {
        names += known.count(name) ? "" : " " + name;
      }
    }
    if (!names.empty()) {
      std::cerr << "simulated Gaudi: these are in GaudiConfig's autocast lists and are not cast here:" << names << "\n";
    }
  }
};

#define CAST(CHOICE, POLICY, ...)                       \
  if (const char choice = CHOICE; choice == 'l') {      \
    KERNEL(at::kHPU, __VA_ARGS__, lower_precision_fp)   \
  } else if (choice == 'f') {                           \
    KERNEL(at::kHPU, __VA_ARGS__, fp32)                 \
  } else if (choice == '=') {                           \
    KERNEL(at::kHPU, __VA_ARGS__, POLICY)               \
  }
#define LOWER_PRECISION(...) CAST(lists.choose(#__VA_ARGS__), lower_precision_fp, __VA_ARGS__)
#define FP32(...) CAST(lists.choose(#__VA_ARGS__), fp32, __VA_ARGS__)
#define FP32_SET_OPT_DTYPE(...) CAST(lists.choose(#__VA_ARGS__), fp32_set_opt_dtype, __VA_ARGS__)
#define PROMOTE(...) CAST(lists.choose(#__VA_ARGS__, '='), promote, __VA_ARGS__)

// The lists are read when the card is first touched: GaudiTrainingArguments names their files after the plugin is loaded.
void register_autocast() {
  auto& m = *new torch::Library(torch::Library::IMPL, "aten", DispatchKey::AutocastHPU, __FILE__, __LINE__);  // stays
  CastLists lists;
  AT_FORALL_LOWER_PRECISION_FP(LOWER_PRECISION)
  AT_FORALL_FP32(FP32)
  AT_FORALL_FP32_SET_OPT_DTYPE(FP32_SET_OPT_DTYPE)
  AT_FORALL_PROMOTE(PROMOTE)
  lists.tell_unknown();
}

// ---------------------------------------------------------------------------------------------------------------------
// What the stand-in for habana_frameworks asks

TORCH_LIBRARY(simulated_gaudi, m) {
  m.def("count_cards() -> int", []() { return int64_t(count_cards()); });
  m.def("acquire() -> ()", []() { acquire(); });
  m.def("is_acquired() -> bool", []() { return acquired.load(); });
  m.def("operations() -> int", []() { return operations.load(); });
  m.def("collectives() -> int", []() { return collectives.load(); });
  m.def("bytes_in_use() -> int", []() { return bytes_in_use.load(); });
  m.def("most_bytes_in_use() -> int", []() { return most_bytes_in_use.load(); });
  m.def("forget_most_bytes() -> ()", []() { most_bytes_in_use = bytes_in_use.load(); });
}

}  // namespace

namespace at {

// PyTorch finds this by the name of the class.
struct HPUHooks final : HPUHooksInterface {
  explicit HPUHooks(HPUHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return count_cards() > 0; }
  bool hasHPU() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return acquired; }
  DeviceIndex deviceCount() const override { return count_cards(); }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  Device getDeviceFromPtr(void*) const override { return Device(kHPU, 0); }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }  // nothing need be pinned
  // Random numbers of the card are the host's, so that a run draws the same ones as on the CPU.
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    return globalContext().defaultGenerator(Device(kCPU));
  }
};

REGISTER_HPU_HOOKS(HPUHooks)

}  // namespace at
