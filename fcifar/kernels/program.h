/* A step in C++ without a Python interpreter: what `aot.py` puts around the code of Inductor.
 *
 * Inductor writes a function `run_impl`, which makes the intermediate tensors and calls the fused
 * loops and torch's operations in order. AOTInductor compiles it into a container for serving
 * models, with constants that can be exchanged; that takes four times as long as compiling the rest,
 * and a step has no constants. Only C functions of torch (`aoti_torch_...`) are called.
 */
#include <array>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>
#include <torch/csrc/inductor/aoti_torch/c/shim_cpu.h>
#include <torch/csrc/inductor/aoti_runtime/utils.h>
#include <torch/csrc/inductor/aoti_runtime/scalar_to_tensor.h>
#include <torch/csrc/inductor/cpp_wrapper/device_internal/cpu.h>

namespace torch::aot_inductor {

using DeviceStreamType = void *;

struct Program {
    int32_t device_idx_ = 0;
    void run_impl(AtenTensorHandle *inputs, AtenTensorHandle *outputs, DeviceStreamType, AOTIProxyExecutorHandle);
};

/* `aot.py` has compared the shapes, strides and dtypes. */
[[maybe_unused]] static void __check_inputs_outputs(AtenTensorHandle *, AtenTensorHandle *) {}
[[maybe_unused]] static bool _check_aoti_runtime_check_inputs_env() { return false; }
template <class... Any> void assert_size_stride(Any &&...) {}

} // namespace torch::aot_inductor

/* Of torch 2.12 or newer: what the last operation that failed said. */
extern "C" __attribute__((weak)) const char *torch_exception_get_what();

static thread_local std::string last_error;

/* Why the last call of this thread failed. */
extern "C" const char *fcifar_error() { return last_error.c_str(); }

extern "C" void fcifar_release(AtenTensorHandle *handles, int64_t count)
{
    for (int64_t i = 0; i < count; i++) aoti_torch_delete_tensor_object(handles[i]);
}

/* Called with each tensor that a kernel has written, if `aot.py` compiled it to be observed: the
 * kernel, the number of the tensor and of how many, and a new reference to it. */
extern "C" void (*fcifar_observer)(const char *, int64_t, int64_t, AtenTensorHandle) = nullptr;

[[maybe_unused]] static void observe(const char *kernel, int64_t i, int64_t count, AtenTensorHandle written)
{
    AtenTensorHandle reference = nullptr;
    if (written) AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(written, &reference));
    fcifar_observer(kernel, i, count, reference);
}

/* Run once. The first `kept` inputs stay the caller's, the other `given` ones are released here;
 * the outputs become the caller's. Returns 0, or 1 after an error. */
extern "C" int fcifar_run(AtenTensorHandle *inputs, int64_t kept, int64_t given, AtenTensorHandle *outputs)
{
    bool grad = aoti_torch_grad_mode_is_enabled(), failed = true;
    aoti_torch_grad_mode_set_enabled(false);
    try {
        std::vector<AtenTensorHandle> handles(inputs, inputs + kept + given);
        for (int64_t i = 0; i < kept; i++) AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(inputs[i], &handles[i]));
        torch::aot_inductor::Program().run_impl(handles.data(), outputs, nullptr, nullptr);
        failed = false;
    } catch (const std::exception &error) {
        last_error = error.what();
        bool of_torch = last_error.find("API call failed") != std::string::npos;
        if (of_torch && torch_exception_get_what) last_error = std::string(torch_exception_get_what()) + "; " + last_error;
    } catch (...) {
        last_error = "unknown error";
    }
    aoti_torch_grad_mode_set_enabled(grad);
    return failed;
}
