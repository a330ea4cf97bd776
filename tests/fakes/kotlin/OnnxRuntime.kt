// The public API of onnxruntime-android, as far as the app code uses it, around recorded answers.
@file:Suppress("UNUSED_PARAMETER", "unused")

package ai.onnxruntime

import java.nio.ByteBuffer
import java.util.Optional
import recorded.Recorded

enum class OnnxJavaType { FLOAT, DOUBLE, INT8, INT16, INT32, INT64, BOOL, STRING, UINT8, FLOAT16, BFLOAT16, UNKNOWN }

class TensorInfo(@JvmField val type: OnnxJavaType, val shape: LongArray)

interface OnnxValue : AutoCloseable

interface OnnxTensorLike : OnnxValue

class OnnxTensor(val info: TensorInfo, private val bytes: ByteArray) : OnnxTensorLike {
    val byteBuffer: ByteBuffer get() = Recorded.direct(bytes)

    init {
        Recorded.held += 1
    }

    override fun close() {
        Recorded.held -= 1
    }

    companion object {
        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: ByteBuffer, shape: LongArray, type: OnnxJavaType): OnnxTensor =
            OnnxTensor(TensorInfo(type, shape), Recorded.bytes(data))
    }
}

class OrtEnvironment private constructor() {
    fun createSession(path: String, options: OrtSession.SessionOptions): OrtSession = OrtSession(path)

    companion object {
        @JvmStatic
        fun getEnvironment(): OrtEnvironment = OrtEnvironment()
    }
}

class OrtSession(path: String) : AutoCloseable {
    init {
        check(java.io.File(path).isFile) { "no model at $path" }
        Recorded.held += 1
    }

    fun run(inputs: Map<String, OnnxTensorLike>): Result {
        val given = inputs.values.map { (it as OnnxTensor).byteBuffer }
        return Result(Recorded.answer(given).mapValues { (_, a) -> OnnxTensor(TensorInfo(type(a.dtype), a.shape), a.bytes) })
    }

    private fun type(dtype: String) = if (dtype == "float32") OnnxJavaType.FLOAT else OnnxJavaType.valueOf(dtype.uppercase())

    override fun close() {
        Recorded.held -= 1
    }

    class SessionOptions : AutoCloseable {
        init {
            Recorded.held += 1
        }

        fun setIntraOpNumThreads(count: Int) {}

        fun setInterOpNumThreads(count: Int) {}

        fun addConfigEntry(key: String, value: String) {}

        fun addQnn(options: Map<String, String>) {}

        override fun close() {
            Recorded.held -= 1
        }
    }

    class Result(private val values: Map<String, OnnxValue>) : AutoCloseable {
        fun get(name: String): Optional<OnnxValue> = Optional.ofNullable(values[name])

        override fun close() = values.values.forEach { it.close() }
    }
}
