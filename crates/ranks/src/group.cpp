// The calls of libtorch's c10d that `group.rs` makes. Each returns null, or what went wrong, to be freed by `oq_ranks_free`.

#include <ATen/ATen.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstring>
#include <string>
#include <vector>

C10_DECLARE_int(caffe2_log_level);

namespace {

struct Group {
  c10::intrusive_ptr<c10d::TCPStore> store;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
};

// Throws where this process has hung up.
c10d::ProcessGroupGloo& gloo_of(void* group) {
  auto& gloo = static_cast<Group*>(group)->gloo;
  if (!gloo) {
    throw std::runtime_error("this process has hung up");
  }
  return *gloo;
}

char* text_of(const std::string& text) {
  return strdup(text.c_str());
}

template <typename F>
char* caught(F&& call) {
  try {
    call();
    return nullptr;
  } catch (const c10::Error& error) {
    return text_of(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return text_of(error.what());
  } catch (...) {
    return text_of("an unknown error");
  }
}

} // namespace

extern "C" {

void oq_ranks_free(char* text) {
  free(text);
}

// `interface` and `local` name where this process listens: a network interface, or a host name. Both may be null.
char* oq_ranks_join(const char* host, uint16_t port, int rank, int size, const char* interface, const char* local,
                    uint64_t join_secs, uint64_t wait_secs, void** out) {
  return caught([&] {
    // What goes wrong is returned. Libraries print nothing, unless the user has asked for it.
    if (!getenv("TORCH_CPP_LOG_LEVEL")) {
      FLAGS_caffe2_log_level = 3;
    }
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = rank == 0;
    options.numWorkers = size;
    options.waitWorkers = true;
    options.timeout = std::chrono::seconds(join_secs);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    auto of_gloo = c10d::ProcessGroupGloo::Options::create(std::chrono::seconds(wait_secs));
    using Gloo = c10d::ProcessGroupGloo;
    of_gloo->devices.push_back(interface ? Gloo::createDeviceForInterface(interface)
                               : local   ? Gloo::createDeviceForHostname(local)
                                         : Gloo::createDefaultDevice());
    auto gloo = c10::make_intrusive<Gloo>(store, rank, size, of_gloo);
    *out = new Group{std::move(store), std::move(gloo)};
  });
}

// Ends the connections, so that nobody waits for this process any more. Notes can still be left and read.
void oq_ranks_hang_up(void* group) {
  free(caught([&] { static_cast<Group*>(group)->gloo.reset(); }));
}

void oq_ranks_leave(void* group) {
  // What other processes do when this one leaves must not end it.
  free(caught([&] { delete static_cast<Group*>(group); }));
}

// Equal parts of `in` go to each rank, in order; `out` has one from each.
char* oq_ranks_exchange(void* group, at::Tensor* out, at::Tensor* in) {
  return caught([&] {
    std::vector<int64_t> equal;
    gloo_of(group).alltoall_base(*out, *in, equal, equal)->wait();
  });
}

// `out` has the `in` of each rank, in order.
char* oq_ranks_gather(void* group, at::Tensor* out, at::Tensor* in) {
  return caught([&] { gloo_of(group)._allgather_base(*out, *in)->wait(); });
}

char* oq_ranks_broadcast(void* group, at::Tensor* tensor, int root) {
  return caught([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    gloo_of(group).broadcast(tensors, options)->wait();
  });
}

char* oq_ranks_set(void* group, const char* key, const char* value) {
  return caught([&] {
    static_cast<Group*>(group)->store->set(key, std::vector<uint8_t>(value, value + strlen(value)));
  });
}

// `out` becomes the value, or null if there is none.
char* oq_ranks_get(void* group, const char* key, char** out) {
  return caught([&] {
    auto& store = static_cast<Group*>(group)->store;
    *out = nullptr;
    if (store->check({key})) {
      auto value = store->get(key);
      *out = text_of(std::string(value.begin(), value.end()));
    }
  });
}

}
