// android.graphics, as far as the app code uses it: signatures only.
@file:Suppress("UNUSED_PARAMETER", "unused")

package android.graphics

class Bitmap private constructor(val width: Int, val height: Int) {
    enum class Config { ALPHA_8, RGB_565, ARGB_8888, RGBA_F16, HARDWARE }

    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) {}

    fun recycle() {}
}

object BitmapFactory {
    class Options {
        @JvmField var inJustDecodeBounds = false

        @JvmField var inScaled = true

        @JvmField var inPremultiplied = true

        @JvmField var inPreferredConfig: Bitmap.Config? = null

        @JvmField var outWidth = -1

        @JvmField var outHeight = -1
    }

    @JvmStatic
    fun decodeFile(path: String, options: Options): Bitmap? = null
}
