package recorded

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** What the stand-in engines answer: the recorded output for a recorded input, zeros for any other. */
object Recorded {
    class Array(val dtype: String, val shape: LongArray, val bytes: ByteArray)

    class Call(val inputs: List<ByteArray>, val outputs: Map<String, Array>)

    val calls = ArrayList<Call>()

    /** Objects that a runtime holds outside the JVM's heap, made and not yet closed. */
    var held = 0

    fun answer(inputs: List<ByteBuffer>): Map<String, Array> {
        val given = inputs.map { bytes(it) }
        val found = calls.find { call -> call.inputs.zip(given).all { (a, b) -> a.contentEquals(b) } }
        return found?.outputs ?: calls.first().outputs.mapValues { (_, a) -> Array(a.dtype, a.shape, ByteArray(a.bytes.size)) }
    }

    fun bytes(buffer: ByteBuffer): ByteArray {
        check(buffer.isDirect && buffer.order() == ByteOrder.nativeOrder()) { "an engine would copy or swap this buffer" }
        return ByteArray(buffer.capacity()) { buffer.get(it) }
    }

    fun direct(bytes: ByteArray): ByteBuffer =
        ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder()).put(bytes).rewind()
}
