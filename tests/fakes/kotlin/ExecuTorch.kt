// The public API of executorch-android, as far as the app code uses it, around recorded answers.
@file:Suppress("UNUSED_PARAMETER", "unused")

package org.pytorch.executorch

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer
import recorded.Recorded

class Tensor(private val bytes: ByteBuffer, private val shape: LongArray) {
    fun shape(): LongArray = shape

    fun content(): ByteBuffer = bytes

    val dataAsFloatArray: FloatArray
        get() = FloatArray(bytes.capacity() / 4) { bytes.getFloat(4 * it) }

    companion object {
        @JvmStatic
        fun fromBlob(data: FloatBuffer, shape: LongArray): Tensor {
            check(data.isDirect)
            val copy = ByteBuffer.allocateDirect(4 * data.capacity()).order(ByteOrder.nativeOrder())
            for (i in 0 until data.capacity()) copy.putFloat(4 * i, data.get(i))
            return Tensor(copy, shape)
        }

        @JvmStatic
        fun fromBlob(data: IntBuffer, shape: LongArray): Tensor = error("not recorded")

        @JvmStatic
        fun fromBlob(data: LongBuffer, shape: LongArray): Tensor = error("not recorded")

        @JvmStatic
        fun fromBlobUnsigned(data: ByteBuffer, shape: LongArray): Tensor = Tensor(data, shape)
    }
}

class EValue(private val tensor: Tensor) {
    fun toTensor(): Tensor = tensor

    companion object {
        @JvmStatic
        fun from(tensor: Tensor): EValue = EValue(tensor)
    }
}

class Module private constructor() {
    init {
        Recorded.held += 1
    }

    fun forward(vararg inputs: EValue): Array<EValue> {
        val found = Recorded.answer(inputs.map { it.toTensor().content() })
        return found.values.map { EValue(Tensor(Recorded.direct(it.bytes), it.shape)) }.toTypedArray()
    }

    fun destroy() {
        Recorded.held -= 1
    }

    companion object {
        const val LOAD_MODE_FILE = 0
        const val LOAD_MODE_MMAP = 1

        @JvmStatic
        fun load(path: String, mode: Int, threads: Int): Module {
            check(java.io.File(path).isFile) { "no model at $path" }
            return Module()
        }
    }
}
