/* The operations of `conv_pool.py`, `winograd.py`, `wide_conv.py`, `norm_gelu.py` and `threefry.py` for
 * programs without Python.
 *
 * The kernels that were compiled for the program's shapes are in three tables, which `aot.py` puts
 * after this file.
 */
struct ConvPool {
    std::vector<int64_t> shape;
    int (*forward)(int64_t, const float *, const float *, const float *, float *, uint8_t *);
    int (*backward)(int64_t, const float *, const uint8_t *, const float *, const float *, float *, float *, float *);
    int (*backward_each)(int64_t, const float *, const uint8_t *, const float *, const float *, float *, float *, float *);
};

struct WideConv {
    std::vector<int64_t> shape;
    int (*backward)(int64_t, const uint16_t *, const uint8_t *, const uint16_t *, const uint16_t *, uint16_t *, uint16_t *);
};

struct Winograd {
    std::vector<int64_t> shape;
    int (*forward)(int64_t, const uint16_t *, const uint16_t *, uint16_t *, uint8_t *);
    int (*backward)(int64_t, const uint16_t *, const uint8_t *, const uint16_t *, const uint16_t *, uint16_t *, uint16_t *);
};

struct Words {
    const uint32_t *data;
    const int64_t *strides;
};

extern const std::vector<ConvPool> conv_pools;
extern const std::vector<WideConv> wide_convs;
extern const std::vector<Winograd> winograds;

extern "C" {
void threefry2x32(int64_t, const int64_t *, const Words *, uint32_t *, uint32_t *);
void norm_gelu(int64_t, int64_t, const uint16_t *, const float *, const float *, uint16_t *);
void norm_gelu_backward(int64_t, int64_t, const uint16_t *, const uint16_t *, const float *, const float *,
                        const float *, const float *, const float *, uint16_t *);
int norm_gelu_sums(int64_t, int64_t, const uint16_t *, const uint16_t *, const float *, const float *, float *, float *);
int moments(int64_t, int64_t, const uint16_t *, float *, float *);
}

namespace {

using torch::aot_inductor::RAIIAtenTensorHandle;

struct Shape {
    int64_t *sizes, *strides;
    explicit Shape(AtenTensorHandle x)
    {
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(x, &sizes));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(x, &strides));
    }
    int64_t operator[](int i) const { return sizes[i]; }
};

std::vector<int64_t> dense_strides(const std::vector<int64_t> &sizes, bool channels_last)
{
    std::vector<int64_t> strides(sizes.size(), 1);
    if (channels_last) return {sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3], sizes[1]};
    for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
    return strides;
}

int64_t dims_of(AtenTensorHandle x)
{
    int64_t dims;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(x, &dims));
    return dims;
}

AtenTensorHandle empty(const std::vector<int64_t> &sizes, int32_t dtype, bool channels_last = false)
{
    AtenTensorHandle made;
    auto strides = dense_strides(sizes, channels_last);
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        sizes.size(), sizes.data(), strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &made));
    return made;
}

template <class T> T *data(AtenTensorHandle x)
{
    void *pointer;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(x, &pointer));
    return (T *)pointer;
}

/* The same values in dense memory: the tensor itself, or a copy. */
struct Dense {
    AtenTensorHandle handle;
    RAIIAtenTensorHandle copy;
    Dense(AtenTensorHandle x, int dims, bool channels_last = false) : handle(x)
    {
        Shape shape(x);
        std::vector<int64_t> sizes(shape.sizes, shape.sizes + dims);
        auto strides = dense_strides(sizes, channels_last);
        bool is_dense = true;
        for (int i = 0; i < dims; i++) is_dense = is_dense && (sizes[i] == 1 || strides[i] == shape.strides[i]);
        if (is_dense) return;
        int32_t dtype;
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x, &dtype));
        copy = RAIIAtenTensorHandle(handle = empty(sizes, dtype, channels_last));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(handle, x, 0));
    }
    template <class T> T *data() const { return ::data<T>(handle); }
};

template <class Kernel> const Kernel &find(const std::vector<Kernel> &kernels, const std::vector<int64_t> &shape)
{
    for (const Kernel &kernel : kernels)
        if (kernel.shape == shape) return kernel;
    throw std::runtime_error("no kernel was compiled for a convolution's shape");
}

void check(int failed)
{
    if (failed) throw std::bad_alloc();
}

const ConvPool &conv_pool(const Shape &x, const Shape &weight, int64_t pad)
{
    return find(conv_pools, {x[1], weight[0], x[2], x[3], weight[2], weight[3], pad});
}

AOTITorchError conv_pool_gradient(
    bool each, AtenTensorHandle gradient, AtenTensorHandle which, AtenTensorHandle x, AtenTensorHandle weight,
    int64_t pad, int32_t input_too, AtenTensorHandle *of_x, AtenTensorHandle *of_weight, AtenTensorHandle *of_bias)
{
    Shape s(x), w(weight);
    const ConvPool &kernel = conv_pool(s, w, pad);
    Dense g(gradient, 4), i(which, 4), a(x, 4), b(weight, 4);
    int32_t dtype = aoti_torch_dtype_float32();
    std::vector<int64_t> weights(w.sizes, w.sizes + 4), biases = {w[0]};
    if (each) weights.insert(weights.begin(), s[0]), biases.insert(biases.begin(), s[0]);
    *of_x = empty(input_too ? std::vector<int64_t>(s.sizes, s.sizes + 4) : std::vector<int64_t>{0}, dtype);
    *of_weight = empty(weights, dtype);
    *of_bias = empty(biases, dtype);
    check((each ? kernel.backward_each : kernel.backward)(
        s[0], g.data<float>(), i.data<uint8_t>(), a.data<float>(), b.data<float>(),
        input_too ? data<float>(*of_x) : nullptr, data<float>(*of_weight), data<float>(*of_bias)));
    return AOTI_TORCH_SUCCESS;
}

const Winograd &winograd(const Shape &x, const Shape &weight, bool pool, bool gradient)
{
    return find(winograds, {x[1], weight[0], x[2], x[3], pool, gradient});
}

/* Empty gradients of a convolution, with channels last. */
void empty_gradients(const Shape &x, const Shape &w, int32_t input_too, int32_t weight_too, AtenTensorHandle *of_x, AtenTensorHandle *of_weight)
{
    int32_t dtype = aoti_torch_dtype_bfloat16();
    *of_x = input_too ? empty({x[0], x[1], x[2], x[3]}, dtype, true) : empty({0}, dtype);
    *of_weight = weight_too ? empty({w[0], w[1], w[2], w[3]}, dtype, true) : empty({0}, dtype);
}

/* The gradients of a convolution in bfloat16, with or without the choices of a pool behind it. */
AOTITorchError conv_gradient(
    decltype(WideConv::backward) backward, AtenTensorHandle gradient, AtenTensorHandle which, AtenTensorHandle x,
    AtenTensorHandle weight, int32_t input_too, int32_t weight_too, AtenTensorHandle *of_x, AtenTensorHandle *of_weight)
{
    Shape s(x), w(weight);
    Dense g(gradient, 4, true), i(which ? which : gradient, 4, true), a(x, 4, true), b(weight, 4, true);
    empty_gradients(s, w, input_too, weight_too, of_x, of_weight);
    check(backward(
        s[0], g.data<uint16_t>(), which ? i.data<uint8_t>() : nullptr, a.data<uint16_t>(), b.data<uint16_t>(),
        input_too ? data<uint16_t>(*of_x) : nullptr, weight_too ? data<uint16_t>(*of_weight) : nullptr));
    return AOTI_TORCH_SUCCESS;
}

/* Images with channels last: how many pixels there are. */
int64_t pixels(const Shape &x) { return x[0] * x[2] * x[3]; }

AtenTensorHandle empty_image(const Shape &x)
{
    return empty({x[0], x[1], x[2], x[3]}, aoti_torch_dtype_bfloat16(), true);
}

} // namespace

extern "C" {

AOTITorchError aoti_torch_cpu_conv_pool(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle bias, int64_t pad, AtenTensorHandle *pooled,
    AtenTensorHandle *which)
{
    Shape s(x), w(weight);
    const ConvPool &kernel = conv_pool(s, w, pad);
    Dense a(x, 4), b(weight, 4), c(bias, 1);
    std::vector<int64_t> sizes = {s[0], w[0], (s[2] + 2 * pad - w[2] + 1) / 2, (s[3] + 2 * pad - w[3] + 1) / 2};
    *pooled = empty(sizes, aoti_torch_dtype_float32());
    *which = empty(sizes, aoti_torch_dtype_uint8());
    check(kernel.forward(s[0], a.data<float>(), b.data<float>(), c.data<float>(), data<float>(*pooled), data<uint8_t>(*which)));
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_conv_pool_backward(
    AtenTensorHandle gradient, AtenTensorHandle which, AtenTensorHandle x, AtenTensorHandle weight, int64_t pad,
    int32_t input_too, AtenTensorHandle *of_x, AtenTensorHandle *of_weight, AtenTensorHandle *of_bias)
{
    return conv_pool_gradient(false, gradient, which, x, weight, pad, input_too, of_x, of_weight, of_bias);
}

AOTITorchError aoti_torch_cpu_conv_pool_backward_each(
    AtenTensorHandle gradient, AtenTensorHandle which, AtenTensorHandle x, AtenTensorHandle weight, int64_t pad,
    int32_t input_too, AtenTensorHandle *of_x, AtenTensorHandle *of_weight, AtenTensorHandle *of_bias)
{
    return conv_pool_gradient(true, gradient, which, x, weight, pad, input_too, of_x, of_weight, of_bias);
}

AOTITorchError aoti_torch_cpu_wide_conv_backward(
    AtenTensorHandle gradient, AtenTensorHandle which, AtenTensorHandle x, AtenTensorHandle weight, int32_t input_too,
    int32_t weight_too, AtenTensorHandle *of_x, AtenTensorHandle *of_weight)
{
    Shape s(x), w(weight);
    const WideConv &kernel = find(wide_convs, {s[1], w[0], s[2], s[3]});
    return conv_gradient(kernel.backward, gradient, which, x, weight, input_too, weight_too, of_x, of_weight);
}

AOTITorchError aoti_torch_cpu_winograd_conv(AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle *y)
{
    Shape s(x), w(weight);
    Dense a(x, 4, true), b(weight, 4, true);
    *y = empty({s[0], w[0], s[2], s[3]}, aoti_torch_dtype_bfloat16(), true);
    check(winograd(s, w, false, false).forward(s[0], a.data<uint16_t>(), b.data<uint16_t>(), data<uint16_t>(*y), nullptr));
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_winograd_conv_backward(
    AtenTensorHandle gradient, AtenTensorHandle x, AtenTensorHandle weight, int32_t input_too, int32_t weight_too,
    AtenTensorHandle *of_x, AtenTensorHandle *of_weight)
{
    const Winograd &kernel = winograd(Shape(x), Shape(weight), false, true);
    return conv_gradient(kernel.backward, gradient, nullptr, x, weight, input_too, weight_too, of_x, of_weight);
}

AOTITorchError aoti_torch_cpu_winograd_conv_pool_backward(
    AtenTensorHandle gradient, AtenTensorHandle which, AtenTensorHandle x, AtenTensorHandle weight, int32_t input_too,
    int32_t weight_too, AtenTensorHandle *of_x, AtenTensorHandle *of_weight)
{
    const Winograd &kernel = winograd(Shape(x), Shape(weight), true, true);
    return conv_gradient(kernel.backward, gradient, which, x, weight, input_too, weight_too, of_x, of_weight);
}

AOTITorchError aoti_torch_cpu_winograd_conv_pool(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle *pooled, AtenTensorHandle *which)
{
    Shape s(x), w(weight);
    Dense a(x, 4, true), b(weight, 4, true);
    std::vector<int64_t> sizes = {s[0], w[0], s[2] / 2, s[3] / 2};
    *pooled = empty(sizes, aoti_torch_dtype_bfloat16(), true);
    *which = empty(sizes, aoti_torch_dtype_uint8(), true);
    check(winograd(s, w, true, false).forward(
        s[0], a.data<uint16_t>(), b.data<uint16_t>(), data<uint16_t>(*pooled), data<uint8_t>(*which)));
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_norm_gelu(
    AtenTensorHandle x, AtenTensorHandle scale, AtenTensorHandle shift, AtenTensorHandle *z)
{
    Shape s(x);
    Dense a(x, 4, true), b(scale, 1), c(shift, 1);
    *z = empty_image(s);
    norm_gelu(pixels(s), s[1], a.data<uint16_t>(), b.data<float>(), c.data<float>(), data<uint16_t>(*z));
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_norm_gelu_sums(
    AtenTensorHandle dz, AtenTensorHandle x, AtenTensorHandle scale, AtenTensorHandle shift, AtenTensorHandle *of_g,
    AtenTensorHandle *of_gx)
{
    Shape s(x);
    Dense g(dz, 4, true), a(x, 4, true), b(scale, 1), c(shift, 1);
    for (auto sums : {of_g, of_gx}) *sums = empty({s[1]}, aoti_torch_dtype_float32());
    check(norm_gelu_sums(pixels(s), s[1], g.data<uint16_t>(), a.data<uint16_t>(), b.data<float>(), c.data<float>(),
                         data<float>(*of_g), data<float>(*of_gx)));
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_norm_gelu_backward(
    AtenTensorHandle dz, AtenTensorHandle x, AtenTensorHandle scale, AtenTensorHandle shift, AtenTensorHandle of_g,
    AtenTensorHandle of_x, AtenTensorHandle rest, AtenTensorHandle *dx)
{
    Shape s(x);
    Dense g(dz, 4, true), a(x, 4, true), b(scale, 1), c(shift, 1), d(of_g, 1), e(of_x, 1), f(rest, 1);
    *dx = empty_image(s);
    norm_gelu_backward(pixels(s), s[1], g.data<uint16_t>(), a.data<uint16_t>(), b.data<float>(), c.data<float>(),
                       d.data<float>(), e.data<float>(), f.data<float>(), data<uint16_t>(*dx));
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_moments(AtenTensorHandle x, AtenTensorHandle *variance, AtenTensorHandle *mean)
{
    Shape s(x);
    Dense a(x, 4, true);
    for (auto sums : {variance, mean}) *sums = empty({s[1]}, aoti_torch_dtype_float32());
    check(moments(pixels(s), s[1], a.data<uint16_t>(), data<float>(*variance), data<float>(*mean)));
    return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_cpu_threefry2x32(
    AtenTensorHandle k0, AtenTensorHandle k1, AtenTensorHandle x0, AtenTensorHandle x1, AtenTensorHandle *y0,
    AtenTensorHandle *y1)
{
    AtenTensorHandle in[4] = {k0, k1, x0, x1};
    size_t dims = 0;
    for (auto x : in) dims = std::max(dims, (size_t)dims_of(x));
    std::vector<int64_t> sizes(dims, 1), strides[4];
    for (auto x : in) {
        Shape shape(x);
        size_t own = dims_of(x), first = dims - own;
        for (size_t d = 0; d < own; d++)
            if (shape[d] != 1) sizes[first + d] = shape[d];
    }
    *y0 = empty(sizes, aoti_torch_dtype_int32());
    *y1 = empty(sizes, aoti_torch_dtype_int32());
    Words words[4];
    for (int w = 0; w < 4; w++) {
        Shape shape(in[w]);
        size_t own = dims_of(in[w]), first = dims - own;
        strides[w].assign(dims + !dims, 0);
        for (size_t d = 0; d < own; d++)
            if (shape[d] != 1) strides[w][first + d] = shape.strides[d];
        words[w] = {data<uint32_t>(in[w]), strides[w].data()};
    }
    if (!dims) sizes.push_back(1);
    threefry2x32(sizes.size(), sizes.data(), words, data<uint32_t>(*y0), data<uint32_t>(*y1));
    return AOTI_TORCH_SUCCESS;
}

} // extern "C"
