// A device for tests, in main memory. It registers with libtorch as the device type MPS, which builds for CPUs leave empty.
//
// Each byte of its memory has two addresses. Tensors hold the one in a half of the address space that no access is allowed to, so that
// the host faults where it reads or writes a tensor by its pointer, as it would with memory of an accelerator. Operations run as libtorch's
// own on the CPU, on tensors that hold the other address.
//
// As on CUDA, tensors of the host are refused beside those of the device, unless they are single numbers. Copies between the two, and
// operations after which the host has to wait for a result, are counted.

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

namespace {

constexpr auto kType = c10::DeviceType::MPS;
constexpr auto kKey = c10::DispatchKey::MPS;
const c10::Device kDevice(kType, 0);
// Address space, not memory: pages take memory once they are written.
constexpr size_t kBytes = size_t{64} << 30;

struct Counts {
  std::atomic<uint64_t> to_device{0}, to_device_bytes{0}, to_host{0}, to_host_bytes{0}, waits{0}, operations{0};
};
Counts counts;

// ---- Memory

class Memory final : public c10::Allocator {
 public:
  Memory() {
    void* all = mmap(nullptr, 2 * kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(all != MAP_FAILED, "no address space for the protected device");
    open_ = static_cast<char*>(all);
    TORCH_CHECK(mprotect(open_, kBytes, PROT_READ | PROT_WRITE) == 0, "no memory for the protected device");
  }

  c10::DataPtr allocate(size_t bytes) override {
    void* at = bytes == 0 ? nullptr : take(bytes);
    return {at, at, &give_back, kDevice};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(open(to), open(from), bytes); }

  // The address at which the host may read and write what lies at a tensor's address.
  void* open(const void* closed) const {
    return closed == nullptr ? nullptr : const_cast<char*>(static_cast<const char*>(closed)) - kBytes;
  }

 private:
  static void give_back(void* at);

  // Sizes are rounded up to a power of two; what was given back is used again for the same size.
  void* take(size_t bytes) {
    const size_t size = std::bit_ceil(std::max<size_t>(bytes, 64));
    std::lock_guard<std::mutex> lock(mutex_);
    auto& free = free_[size];
    char* at = nullptr;
    if (free.empty()) {
      TORCH_CHECK(next_ + size <= kBytes, "the protected device is out of memory");
      at = open_ + kBytes + next_;
      next_ += size;
    } else {
      at = free.back();
      free.pop_back();
    }
    sizes_[at] = size;
    return at;
  }

  std::mutex mutex_;
  char* open_ = nullptr;
  size_t next_ = 0;
  std::map<size_t, std::vector<char*>> free_;
  std::map<char*, size_t> sizes_;
};

Memory& memory() {
  // Never destroyed: tensors may outlive everything.
  static Memory* memory = new Memory();
  return *memory;
}

void Memory::give_back(void* at) {
  if (at == nullptr) return;
  auto& all = memory();
  std::lock_guard<std::mutex> lock(all.mutex_);
  const auto found = all.sizes_.find(static_cast<char*>(at));
  const size_t size = found->second;
  all.sizes_.erase(found);
  // Large blocks return their pages, so that a leak of the device shows in the process.
  if (size >= (size_t{1} << 20)) madvise(all.open(at), size, MADV_DONTNEED);
  all.free_[size].push_back(static_cast<char*>(at));
}

// ---- The device as libtorch asks for it

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kType;
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};

// libtorch runs backward passes on a thread of the device if there is an accelerator.
struct Hooks final : public at::MPSHooksInterface {
  Hooks() = default;
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasMPS() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::Allocator* getMPSDeviceAllocator() const override { return &memory(); }
  void deviceSynchronize() const override {}
};

// ---- Tensors of the device as tensors of the host, and back

bool is_ours(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kType; }

// A tensor of the host with the same memory.
at::Tensor opened(const at::Tensor& tensor) {
  const auto& storage = tensor.storage();
  c10::DataPtr data(memory().open(storage.mutable_data()), c10::Device(c10::DeviceType::CPU));
  c10::Storage here(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data));
  auto out = at::detail::make_tensor<c10::TensorImpl>(
      std::move(here), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) out._set_conj(true);
  if (tensor.is_neg()) out._set_neg(true);
  return out;
}

at::Tensor empty_like_strided(at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType kind) {
  return at::detail::empty_strided_generic(sizes, strides, &memory(), c10::DispatchKeySet(kKey), kind);
}

// A tensor of the device with the same values and strides.
at::Tensor closed(const at::Tensor& host) {
  const auto dense = host.is_non_overlapping_and_dense() ? host : host.contiguous();
  auto out = empty_like_strided(dense.sizes(), dense.strides(), dense.scalar_type());
  if (dense.numel() > 0) std::memcpy(memory().open(out.mutable_data_ptr()), dense.const_data_ptr(), dense.nbytes());
  return out;
}

// ---- Operations

// Operations whose result the host has to wait for: their shapes or values depend on the data.
bool host_waits(const std::string& name) {
  static const std::set<std::string> names = {
      "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
      "aten::unique_consecutive", "aten::equal", "aten::repeat_interleave", "aten::bincount", "aten::histc"};
  return names.count(name) > 0;
}

class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), schema_(op.schema()), stack_(stack), first_(stack->size() - schema_.arguments().size()) {}

  void run() {
    ++counts.operations;
    if (host_waits(schema_.name())) ++counts.waits;
    for (size_t i = 0; i < schema_.arguments().size(); ++i) open(i);
    op_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    const size_t n = schema_.returns().size();
    const size_t first = stack_->size() - n;
    for (const auto& resized : resized_) take_resized(resized);
    for (size_t i = 0; i < n; ++i) close((*stack_)[first + i]);
  }

 private:
  struct Opened {
    at::Tensor ours, host;
    bool is_fresh;
  };

  at::Tensor opened_of(const at::Tensor& tensor, bool is_written) {
    if (!is_ours(tensor)) {
      TORCH_CHECK(!tensor.defined() || tensor.dim() == 0 || tensor.numel() == 0, schema_.name(),
                  ": a tensor of the host beside tensors of the device");
      return tensor;
    }
    for (const auto& known : opened_) {
      if (known.ours.is_same(tensor)) return known.host;
    }
    if (tensor.scalar_type() == at::kBool && schema_.name() == "aten::index") ++counts.waits;
    // An output without elements will be resized, which needs memory of its own.
    const bool is_fresh = is_written && tensor.numel() == 0;
    auto host = is_fresh ? at::empty(tensor.sizes(), tensor.options().device(at::kCPU)) : opened(tensor);
    opened_.push_back({tensor, host, is_fresh});
    if (is_fresh) resized_.push_back(opened_.back());
    return host;
  }

  void open(size_t i) {
    auto& value = (*stack_)[first_ + i];
    const auto* alias = schema_.arguments()[i].alias_info();
    const bool is_written = alias != nullptr && alias->isWrite();
    if (value.isTensor()) {
      value = opened_of(value.toTensor(), is_written);
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> all;
      for (const at::Tensor& tensor : value.toTensorList()) all.push_back(opened_of(tensor, is_written));
      value = c10::IValue(c10::List<at::Tensor>(at::ArrayRef<at::Tensor>(all)));
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> all;
      for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector()) {
        all.push_back(tensor ? std::optional<at::Tensor>(opened_of(*tensor, is_written)) : std::nullopt);
      }
      value = c10::IValue(all);
    } else if (value.isDevice() && value.toDevice().type() == kType) {
      value = c10::IValue(c10::Device(c10::DeviceType::CPU));
    }
  }

  void take_resized(const Opened& out) {
    auto full = closed(out.host);
    out.ours.unsafeGetTensorImpl()->set_storage_keep_dtype(full.storage());
    out.ours.unsafeGetTensorImpl()->set_sizes_and_strides(full.sizes(), full.strides(), full.storage_offset());
  }

  at::Tensor closed_of(const at::Tensor& host) {
    if (!host.defined()) return host;
    for (const auto& known : opened_) {
      if (known.host.is_same(host)) return known.ours;
    }
    return closed(host);
  }

  void close(c10::IValue& value) {
    if (value.isTensor()) {
      value = closed_of(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> all;
      for (const at::Tensor& tensor : value.toTensorList()) all.push_back(closed_of(tensor));
      value = c10::IValue(c10::List<at::Tensor>(at::ArrayRef<at::Tensor>(all)));
    }
  }

  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  torch::jit::Stack* stack_;
  size_t first_;
  std::vector<Opened> opened_;
  std::vector<Opened> resized_;
};

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) { Call(op, stack).run(); }

at::Tensor empty(at::SymIntArrayRef sizes, std::optional<at::ScalarType> kind, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(sizes), &memory(), c10::DispatchKeySet(kKey),
                                   c10::dtype_or_default(kind), format);
}

at::Tensor empty_strided(at::SymIntArrayRef sizes, at::SymIntArrayRef strides, std::optional<at::ScalarType> kind,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return empty_like_strided(C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides),
                            c10::dtype_or_default(kind));
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool) {
  ++counts.operations;
  if (is_ours(self) != is_ours(source)) {
    const auto bytes = static_cast<uint64_t>(source.nbytes());
    auto& number = is_ours(self) ? counts.to_device : counts.to_host;
    auto& moved = is_ours(self) ? counts.to_device_bytes : counts.to_host_bytes;
    ++number;
    moved += bytes;
  }
  auto to = is_ours(self) ? opened(self) : self;
  to.copy_(is_ours(source) ? opened(source) : source);
  return self;
}

at::Tensor as_strided(const at::Tensor& self, at::SymIntArrayRef sizes, at::SymIntArrayRef strides,
                      std::optional<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides),
      offset ? std::optional<int64_t>(offset->guard_int(__FILE__, __LINE__)) : std::nullopt);
}

at::Tensor view(const at::Tensor& self, at::SymIntArrayRef sizes) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(sizes));
}

at::Tensor reshape_alias(const at::Tensor& self, at::SymIntArrayRef sizes, at::SymIntArrayRef strides) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides));
}

// As on the CPU. libtorch would look for a kernel of the real MPS.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const std::optional<at::Tensor>& mask, double dropout, bool is_causal,
                     std::optional<double> scale, bool enable_gqa) {
  const auto here = [](const at::Tensor& tensor) { return is_ours(tensor) ? opened(tensor.detach()) : tensor; };
  const auto mask_here = mask ? std::optional<at::Tensor>(here(*mask)) : std::nullopt;
  const auto choice =
      at::_fused_sdp_choice(here(query), here(key), here(value), mask_here, dropout, is_causal, scale, enable_gqa);
  if (choice == static_cast<int64_t>(at::SDPBackend::flash_attention)) {
    // Where the choice is made, a mask of yes and no becomes one of numbers.
    auto added = mask;
    if (mask && mask->scalar_type() == at::kBool) {
      added = at::zeros(mask->sizes(), query.options()).masked_fill(mask->logical_not(), -INFINITY);
    }
    return std::get<0>(
        at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout, is_causal, added, scale));
  }
  return std::get<0>(at::_scaled_dot_product_attention_math(query, key, value, mask, dropout, is_causal, std::nullopt,
                                                            scale, enable_gqa));
}

void install() {
  at::MPSHooksRegistry()->Register("MPSHooks", []() -> std::unique_ptr<at::MPSHooksInterface> {
    return std::make_unique<Hooks>();
  });
  c10::SetAllocator(kType, &memory());
  static const c10::impl::DeviceGuardImplRegistrar guard(kType, new Guard());
  static auto* all = new torch::Library(torch::Library::IMPL, "_", kKey, __FILE__, __LINE__);
  all->fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
  static auto* own = new torch::Library(torch::Library::IMPL, "aten", kKey, __FILE__, __LINE__);
  own->impl("empty.memory_format", &empty);
  own->impl("empty_strided", &empty_strided);
  own->impl("copy_", &copy_);
  own->impl("as_strided", &as_strided);
  own->impl("view", &view);
  own->impl("_reshape_alias", &reshape_alias);
  own->impl("unfold", &at::native::unfold);
  own->impl("scaled_dot_product_attention", &attention);
  static auto* graph = new torch::Library(torch::Library::IMPL, "aten", c10::DispatchKey::AutogradMPS, __FILE__, __LINE__);
  graph->impl("scaled_dot_product_attention", &attention);
}

}  // namespace

extern "C" {

// Returns 0, or 1 if the device cannot be had.
int oq_protected_install() {
  try {
    static const bool once = (install(), true);
    return once ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

void oq_protected_counts(uint64_t* out) {
  const std::array<uint64_t, 6> now = {counts.to_device, counts.to_device_bytes, counts.to_host,
                                       counts.to_host_bytes, counts.waits, counts.operations};
  std::copy(now.begin(), now.end(), out);
}
}
