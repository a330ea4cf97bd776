// The public API of LiteRT's interpreter, as far as the app code uses it, around recorded answers.
@file:Suppress("UNUSED_PARAMETER", "unused")

package org.tensorflow.lite

import java.io.File
import java.nio.ByteBuffer
import recorded.Recorded

enum class DataType { FLOAT32, INT32, UINT8, INT64, STRING, BOOL, INT16, INT8 }

interface Tensor {
    fun dataType(): DataType

    fun shape(): IntArray
}

class Interpreter(file: File, options: Options) : AutoCloseable {
    class Options {
        fun setNumThreads(count: Int): Options = this

        fun setUseXNNPACK(use: Boolean): Options = this
    }

    init {
        check(file.isFile) { "no model at $file" }
        Recorded.held += 1
    }

    fun getOutputTensorFromSignature(name: String, signature: String): Tensor {
        val made = Recorded.calls.first().outputs.getValue(name)
        return object : Tensor {
            override fun dataType() = DataType.valueOf(made.dtype.uppercase())

            override fun shape() = made.shape.map { it.toInt() }.toIntArray()
        }
    }

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, signature: String) {
        check(signature == "serving_default")
        val found = Recorded.answer(inputs.values.map { it as ByteBuffer })
        outputs.forEach { (name, into) -> (into as ByteBuffer).put(found.getValue(name).bytes) }
    }

    override fun close() {
        Recorded.held -= 1
    }
}
